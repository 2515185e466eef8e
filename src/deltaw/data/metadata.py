"""Captions in tables: `metadata.jsonl`, `.json` and `.csv` with `file_name` and `text` (or `caption`).

Paths in a table are relative to it and stay below the folder. A row that cannot be used is reported
by its number and the others are kept; a table that cannot be read at all stops, since every caption
would be lost.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any

from deltaw.data.captions import Caption, key, read_text, tidy
from deltaw.data.walk import Skipped, printable, shown
from deltaw.errors import InputError

NAMES = ("metadata.jsonl", "metadata.json", "metadata.csv")
TEXT_COLUMNS = ("text", "caption")
MAX_TABLE_BYTES = 256 * 2**20
ADVICE = 'each row needs a file_name and a text, as in {"file_name": "a.png", "text": "a cat"}'

Row = tuple[int, object]
"""A row's number, from 1, and its object; or the `ValueError` that says why there is none."""


def read(path: Path, root: Path, encoding: str | None = None) -> tuple[dict[str, Caption], list[Skipped]]:
    """Picture keys (see `captions.key`) to captions, and the rows that cannot be used.

    Raises:
        InputError: the table as a whole cannot be read.
    """
    name = shown(path, root)
    base = path.parent.relative_to(root)
    captions: dict[str, Caption] = {}
    skipped: list[Skipped] = []
    text = read_text(path, name, encoding, MAX_TABLE_BYTES)
    for number, row in _ROWS[path.suffix.lower()](text, name):
        source = f"{name}:{number}"
        try:
            if isinstance(row, ValueError):
                raise row
            target, caption = _checked(row, base.as_posix())
            earlier = captions.setdefault(key(target), tidy(caption, source))
            if earlier.source != source:
                raise ValueError(f"{printable(target)} has its caption in {earlier.source} already")
        except ValueError as error:
            skipped.append(Skipped(path, source, str(error)))
    return captions, skipped


def _jsonl(text: str, _name: str) -> Iterator[Row]:
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip():
            try:
                yield number, _parsed(line)
            except ValueError as error:
                yield number, ValueError(f"no valid JSON ({error})")


def _json(text: str, name: str) -> Iterator[Row]:
    try:
        listing = _parsed(text)
    except ValueError as error:
        raise InputError(f"no valid JSON ({error})", where=name, advice="mend it or move it away") from error
    if isinstance(listing, dict):
        listing = [{"file_name": k, **(v if isinstance(v, dict) else {"text": v})} for k, v in listing.items()]
    if not isinstance(listing, list):
        raise InputError("neither a list of rows nor an object of captions", where=name, advice=ADVICE)
    yield from enumerate(listing, start=1)


def _csv(text: str, name: str) -> Iterator[Row]:
    delimiter = max(",;\t", key=text.split("\n", 1)[0].count)
    reader = csv.DictReader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    try:
        if "file_name" not in (reader.fieldnames or ()):
            raise InputError(
                "has no column file_name", where=name, expected="a first line file_name,text", advice="add it"
            )
        for row in reader:
            yield reader.line_num, row
    except csv.Error as error:
        raise InputError(
            f"no valid CSV at line {reader.line_num} ({error})", where=name, advice="mend it or move it away"
        ) from error


_ROWS = {".jsonl": _jsonl, ".json": _json, ".csv": _csv}


def _parsed(text: str) -> Any:
    """JSON without duplicate keys; of two captions one would be dropped in silence.

    Raises:
        ValueError: no JSON, a key twice, or nested too deeply.
    """
    try:
        return json.loads(text, object_pairs_hook=_once)
    except RecursionError as error:
        raise ValueError("nested too deeply") from error


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in pairs:
        if name in found:
            raise ValueError(f"the key {printable(name)!r} stands twice")
        found[name] = value
    return found


def _checked(row: object, base: str) -> tuple[str, str]:
    """A row's picture, as a posix path below the folder, and its caption.

    Raises:
        ValueError: what is wrong with the row.
    """
    if not isinstance(row, dict):
        raise ValueError("the row is no object")
    target = row.get("file_name")
    if not isinstance(target, str) or not target.strip():
        raise ValueError("the row has no file_name")
    column = next((c for c in TEXT_COLUMNS if row.get(c) is not None), None)
    if column is None:
        raise ValueError("the row has neither text nor caption")
    if not isinstance(row[column], str):
        raise ValueError(f"its {column} is no text")
    return _confined(target, base), row[column]


def _confined(target: str, base: str) -> str:
    """The path below the folder; both kinds of slashes are read, since tables travel between systems."""
    path = PurePosixPath(target.replace("\\", "/"))
    if not path.parts:
        raise ValueError("the row has no file_name")
    if path.is_absolute() or ".." in path.parts or path.parts[0][1:2] == ":":
        raise ValueError(f"{printable(target)} leads out of the folder")
    return (PurePosixPath(base) / path).as_posix()
