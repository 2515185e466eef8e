"""Captions: where they are found, how bytes become text, and how text becomes one line.

For a picture `a.png` the first of these that is not empty is used, and its place is kept:
`a.png.txt`, `a.txt`, `a.png.caption`, `a.caption`, the row of a metadata file, the file's own name.
"""

from __future__ import annotations

import codecs
import re
import unicodedata
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from deltaw.data.decode import reading
from deltaw.data.walk import shown
from deltaw.errors import InputError, UsageError

SUFFIXES = (".txt", ".caption")
MAX_CAPTION_BYTES = 4 * 2**20
"""A caption file is no larger; it would be something else with its name."""

MARKS = (
    (codecs.BOM_UTF8, "utf-8"), (codecs.BOM_UTF32_LE, "utf-32-le"), (codecs.BOM_UTF32_BE, "utf-32-be"),
    (codecs.BOM_UTF16_LE, "utf-16-le"), (codecs.BOM_UTF16_BE, "utf-16-be"),
)  # fmt: skip

CAMERA_WORDS = frozenset({
    "img", "image", "imag", "dsc", "dscf", "dscn", "dcim", "pxl", "mvimg", "vid", "gopr", "dji", "sam", "photo", "picture",
    "pic", "scan", "screenshot", "screen", "shot", "untitled", "download", "unnamed", "copy", "file", "whatsapp", "wa",
    "burst", "hdr", "pano", "cover", "edit", "edited", "resized", "output", "frame", "at", "am", "pm",
})  # fmt: skip
"""Words that cameras, phones and programs put into file names; they describe nothing."""
HASH = re.compile(r"(?=.*\d)[0-9a-f]{8,}(-[0-9a-f]{4,})*|(?=.*\d.*\d)(?=.*[a-z])(?=.*[A-Z])[A-Za-z0-9_-]{11,}")
COUNTER = re.compile(r"[\s_-]*\(\d+\)$|[\s_-]+(0\d+|\d{3,})$")


@dataclass(frozen=True)
class Caption:
    """One line of text (or ""), the place it came from, and what was done to it."""

    text: str
    source: str
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Captions:
    """All captions of a folder, by the posix path of a picture below it (see `key`).

    `sidecars` maps the key of a caption file to it, `rows` the key of a picture to its metadata row.
    """

    root: Path
    sidecars: Mapping[str, Path] = field(default_factory=dict)
    rows: Mapping[str, Caption] = field(default_factory=dict)
    encoding: str | None = None
    from_file_names: bool = True

    def of(self, name: str) -> Caption:
        """The caption of the picture with this posix path below the folder.

        Raises:
            InputError: its caption file is no text in the encoding that was assumed.
        """
        found = [self._read(self.sidecars[key]) for key in sidecar_keys(name) if key in self.sidecars]
        if (row := self.rows.get(key(name))) is not None:
            found.append(row)
        told = [caption for caption in found if caption.text]
        if not told:
            return found[0] if found else self._of_name(name)
        others = [other.source for other in told[1:] if other.text != told[0].text]
        differing = tuple(f"{other} says something else; {told[0].source} is used" for other in others)
        return Caption(told[0].text, told[0].source, told[0].notes + differing)

    def _read(self, path: Path) -> Caption:
        source = shown(path, self.root)
        return tidy(decode(read_bytes(path), self.encoding, source), source)

    def _of_name(self, name: str) -> Caption:
        text = from_name(PurePosixPath(name).name) if self.from_file_names else ""
        if text:
            return Caption(text, "file name")
        note = ("no caption: the file name describes nothing",) if self.from_file_names else ()
        return Caption("", "none", note)


def key(name: str) -> str:
    """A path below the folder in one Unicode form, since captions and pictures may come from two systems."""
    return unicodedata.normalize("NFC", name)


def sidecar_keys(name: str) -> list[str]:
    """The keys of the caption files that a picture may have, best first."""
    path = PurePosixPath(name)
    return [key(f"{stem}{suffix}") for suffix in SUFFIXES for stem in (path, path.with_suffix(""))]


def sidecars(files: Iterable[tuple[str, Path]]) -> dict[str, Path]:
    """Caption files by key, from (posix path below the folder, path); `.TXT` is `.txt`, the first of two stays."""
    found: dict[str, Path] = {}
    for name, path in files:
        pure = PurePosixPath(name)
        found.setdefault(key(f"{pure.with_suffix('')}{pure.suffix.lower()}"), path)
    return found


def read_bytes(path: Path, limit_bytes: int = MAX_CAPTION_BYTES) -> bytes:
    """The bytes of a caption or metadata file.

    Raises:
        InputError: unreadable, no regular file, or larger than `limit_bytes`.
    """
    with reading(path) as file:
        raw = file.read(limit_bytes + 1)
    if len(raw) > limit_bytes:
        raise InputError(
            "too large for captions", where=path, expected=f"at most {limit_bytes >> 20} MiB", advice="move it away"
        )
    return raw


def decode(raw: bytes, encoding: str | None, where: str) -> str:
    """Bytes to text: by their mark (UTF-8, UTF-16, UTF-32), else as UTF-8, else as `encoding`.

    Valid UTF-8 beyond ASCII is hardly ever anything else, so it wins over a stated `encoding`, and a
    folder may mix both.

    Raises:
        InputError: the bytes are no such text; the first bad byte and its offset are named.
        UsageError: there is no such encoding.
    """
    for mark, name in MARKS:
        if raw.startswith(mark):
            return _decoded(raw[len(mark) :], name, where, len(mark))
    if encoding is None:
        if raw.count(0) * 4 > len(raw):
            raise InputError(
                "the caption looks like UTF-16 without its mark",
                where=where,
                advice="give --caption-encoding utf-16-le",
            )
        return _decoded(raw, "utf-8", where, 0)
    try:
        codecs.lookup(encoding)
    except LookupError as error:
        raise UsageError(
            f"there is no encoding {encoding!r}",
            where="--caption-encoding",
            advice="try cp1252, cp932, gb18030 or utf-16-le",
        ) from error
    if not raw.isascii() and 0 not in raw:
        try:
            return raw.decode("utf-8")
        except UnicodeDecodeError:
            return _decoded(raw, encoding, where, 0)
    return _decoded(raw, encoding, where, 0)


def _decoded(raw: bytes, encoding: str, where: str, offset: int) -> str:
    try:
        return raw.decode(encoding)
    except UnicodeDecodeError as error:
        at = offset + error.start
        raise InputError(
            f"the caption is not {encoding.upper()}: byte 0x{raw[error.start]:02x} at offset {at}", where=where,
            advice="save it as UTF-8, or say what it is: --caption-encoding cp1252 (Western), cp932 (Japanese)",
        ) from error  # fmt: skip


def tidy(text: str, source: str) -> Caption:
    """One line: lines are stripped and joined by a space, tabs become spaces, control characters go.

    Nothing else is touched: brackets, weights, `<lora:…>`, wildcards and HTML are words like any other.
    """
    lines = [line.strip() for line in text.replace("\t", " ").splitlines()]
    lines = [line for line in lines if line]
    joined = " ".join(lines)
    kept = "".join(
        char for char in joined if unicodedata.category(char) not in ("Cc", "Cs") and char != "\ufeff"
    ).strip()
    notes = []
    if len(lines) > 1:
        notes.append(f"caption: {len(lines)} lines joined")
    if len(kept) < len(joined):
        notes.append("caption: control characters dropped")
    if not kept:
        notes.append("caption is empty")
    return Caption(kept, source, tuple(notes))


def from_name(file_name: str) -> str:
    """What a file name says of its picture: "black-cat_02.png" is "black cat"; "IMG_1234.jpg" is ""."""
    stem = PurePosixPath(file_name).stem
    if HASH.fullmatch(stem):
        return ""
    text = re.sub(r"[_\-\s]+", " ", COUNTER.sub("", stem)).strip()
    words = re.findall(r"[^\W\d_]+", text)
    if all(word.lower() in CAMERA_WORDS or (len(word) == 1 and word.isascii()) for word in words):
        return ""
    return tidy(text.encode("utf-8", "ignore").decode(), "").text
