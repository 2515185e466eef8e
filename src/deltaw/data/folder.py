"""A folder of pictures as a data set: what is used, with which caption from where, and what is not and why.

The folder is only read. No naming ritual, no list of extensions: what a file is, its content decides.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from deltaw.data import metadata, reading
from deltaw.data.captions import SUFFIXES, Caption, Captions, key, require_encoding, sidecars
from deltaw.data.decode import peek
from deltaw.data.examined import Examined, examined
from deltaw.data.walk import MOST_LISTED, Found, Skipped, counted, printable, shown, walk
from deltaw.errors import InputError
from deltaw.events import Phase, Tell, Tick, silent

PICTURE_SUFFIXES = frozenset({
    ".png", ".apng", ".jpg", ".jpeg", ".jpe", ".jfif", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".jp2", ".avif", ".heic",
    ".heif", ".jxl", ".ppm", ".pgm", ".pbm", ".tga", ".svg", ".psd", ".exr", ".cr2", ".cr3", ".nef", ".arw", ".dng", ".orf",
    ".rw2", ".raf",
})  # fmt: skip
"""Names that promise a picture: such a file is reported when it is none. Others may still be pictures."""


@dataclass(frozen=True)
class Picture:
    """A picture that is used.

    Args:
        path: as found.
        name: its posix path below the folder, safe to print.
        digest: sha256 (hex) of the file's bytes.
        size_px: (width, height), upright.
        caption: one line, "" where there is none.
        caption_source: "a.txt", "metadata.jsonl:3", "file name" or "none".
        notes: what was done to it: "EXIF rotated", "transparent: placed on white", ...
    """

    path: Path
    name: str
    digest: str
    size_px: tuple[int, int]
    caption: str
    caption_source: str
    notes: tuple[str, ...]


@dataclass(frozen=True)
class Dataset:
    """A scanned folder. `n_ignored` counts files that never were candidates: hidden, system's, no pictures."""

    root: Path
    pictures: tuple[Picture, ...]
    skipped: tuple[Skipped, ...]
    n_ignored: int
    notes: tuple[str, ...]


def scan(
    folder: str | Path,
    *,
    caption_encoding: str | None = None,
    file_names_as_captions: bool = True,
    exclude: Sequence[Path] = (),
    tell: Tell = silent,
) -> Dataset:
    """Reads every file below a folder, decodes every picture whole, and finds its caption.

    A picture that was decoded before and has not been written to since is not decoded again (`data.examined`).

    Args:
        folder: flat or nested.
        caption_encoding: of caption and metadata files that are not UTF-8.
        file_names_as_captions: whether "red_fox.png" without a caption is "red fox".
        exclude: folders or files inside it that are not to be read, such as the run's own output.
        tell: hears one `Phase` and a `Tick` a file.

    Raises:
        InputError: no folder, no picture that can be used, or a metadata file that cannot be read.
        UsageError: there is no such `caption_encoding`.
    """
    require_encoding(caption_encoding)
    root = Path(folder)
    _require_folder(root)
    found = walk(root, exclude)
    tables, texts, candidates = _sorted_out(found)
    captions, skipped = _captions(root, tables, texts, caption_encoding, file_names_as_captions)
    skipped[:0] = found.skipped
    pictures: list[Picture] = []
    others: list[str] = []
    tell(Phase("reading pictures", len(candidates), "files"))
    with (
        examined(root) as memory,
        closing(reading.ahead(lambda path: _examine(path, root, captions, memory), candidates)) as outcomes,
    ):
        for n_done, (path, outcome) in enumerate(zip(candidates, outcomes, strict=True), start=1):
            if isinstance(outcome, Picture):
                pictures.append(outcome)
            elif outcome is not None:
                skipped.append(outcome)
            else:
                others.append(shown(path, root))
            tell(Tick(n_done, shown(path, root)))
    skipped += _rows_without_picture(root, captions, candidates)
    if not pictures:
        raise _nothing_usable(root, skipped, found.n_ignored + len(others))
    notes = (*found.notes, *_notes(captions, pictures, candidates, texts, others))
    return Dataset(root, tuple(pictures), tuple(skipped), found.n_ignored + len(others), notes)


def _require_folder(root: Path) -> None:
    try:
        if root.is_dir():
            return
        exists = root.exists()
    except (OSError, ValueError) as error:
        raise InputError(
            f"the folder cannot be read ({error})", where=printable(str(root)), advice="check the path"
        ) from error
    if not exists:
        raise InputError("there is no such folder", where=printable(str(root)), advice="check the path")
    what = "this is a single picture" if peek(root).picture else "this is a file"
    raise InputError(
        f"{what}, not a folder", where=printable(str(root)), advice="give the folder that holds the pictures"
    )


def _sorted_out(found: Found) -> tuple[list[Path], list[Path], list[Path]]:
    """Metadata tables, caption files, and the rest, which may be pictures."""
    tables, texts, rest = [], [], []
    for path in found.files:
        if path.name.lower() in metadata.NAMES:
            tables.append(path)
        elif path.suffix.lower() in SUFFIXES:
            texts.append(path)
        else:
            rest.append(path)
    return tables, texts, rest


def _captions(
    root: Path, tables: list[Path], texts: list[Path], encoding: str | None, from_file_names: bool
) -> tuple[Captions, list[Skipped]]:
    rows: dict[str, Caption] = {}
    skipped: list[Skipped] = []
    for table in tables:
        more, bad = metadata.read(table, root, encoding)
        skipped += bad
        for name, row in more.items():
            if rows.setdefault(name, row).text != row.text:
                reason = f"{printable(name)} has another caption in {rows[name].source} already"
                skipped.append(Skipped(table, row.source, reason))
    by_name = sidecars((_name(path, root), path) for path in texts)
    return Captions(root, by_name, rows, encoding, from_file_names), skipped


def _name(path: Path, root: Path) -> str:
    return path.relative_to(root).as_posix()


def _examine(path: Path, root: Path, captions: Captions, memory: Examined) -> Picture | Skipped | None:
    """A file's fate: used, skipped with a reason, or (None) no picture and not named like one."""
    try:
        seen = memory.recall(path)
        if seen is None:
            kind = peek(path)
            if not kind.picture:
                if path.suffix.lower() not in PICTURE_SUFFIXES:
                    return None
                return Skipped(path, shown(path, root), f"this is {kind.name}, no picture; {kind.advice}")
            seen = memory.look(path)
    except InputError as error:
        return Skipped(path, shown(path, root), _reason(error))
    try:
        caption = captions.of(_name(path, root))
    except InputError as error:
        return Skipped(path, shown(path, root), f"its caption {error.where}: {_reason(error)}")
    notes = seen.notes + caption.notes
    return Picture(path, shown(path, root), seen.digest, seen.size_px, caption.text, caption.source, notes)


def _reason(error: InputError) -> str:
    expected = f", expected {error.expected}" if error.expected else ""
    return f"{error.what}{expected}; {error.advice}" if error.advice else error.what + expected


def _rows_without_picture(root: Path, captions: Captions, candidates: list[Path]) -> list[Skipped]:
    there = {key(_name(path, root)) for path in candidates}
    return [
        Skipped(root / name, row.source, f"there is no {printable(name)}")
        for name, row in captions.rows.items()
        if name not in there
    ]


def _notes(
    captions: Captions, pictures: list[Picture], candidates: list[Path], texts: list[Path], others: list[str]
) -> list[str]:
    """What is true of the folder as a whole, each said once."""
    root, notes = captions.root, []
    if others:
        notes.append(counted("files that are no pictures, left alone", others))
    n_users = Counter(text for path in candidates for text in captions.files_of(_name(path, root)))
    if lonely := [shown(text, root) for text in texts if not n_users[text]]:
        notes.append(counted("caption files without a picture", lonely))
    if shared := [shown(text, root) for text in texts if n_users[text] > 1]:
        notes.append(counted("caption files for several pictures each", shared))
    if empty := [picture.name for picture in pictures if not picture.caption]:
        notes.append(counted("pictures without a caption", empty))
    return notes


def _nothing_usable(root: Path, skipped: list[Skipped], n_ignored: int) -> InputError:
    """One error with the counts and every reason, the first `MOST_LISTED` of them by name."""
    what = f"no picture can be used (skipped: {len(skipped)}, left alone: {n_ignored})"
    lines = [f"{item.name}: {item.reason}" for item in skipped[:MOST_LISTED]]
    if len(skipped) > MOST_LISTED:
        lines.append(f"and {len(skipped) - MOST_LISTED} more")
    return InputError(
        what, where=printable(str(root)), expected="at least one PNG, JPEG, WebP, GIF, BMP, TIFF or AVIF picture",
        advice="\n    ".join(["mend these or give another folder:", *lines] if lines else ["give the folder that holds the pictures"]),
    )  # fmt: skip
