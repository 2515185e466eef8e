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
    """All captions of a folder, by the posix path of a picture below it.

    `sidecars` finds caption files (see `sidecars`), `rows` the metadata row of a picture by its `key`.
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
        found = [self._read(path) for path in self.files_of(name)]
        if (row := self.rows.get(key(name))) is not None:
            found.append(row)
        told = [caption for caption in found if caption.text]
        if not told:
            return found[0] if found else self._of_name(name)
        others = [other.source for other in told[1:] if other.text != told[0].text]
        differing = tuple(f"{other} says something else; {told[0].source} is used" for other in others)
        return Caption(told[0].text, told[0].source, told[0].notes + differing)

    def files_of(self, name: str) -> list[Path]:
        """The caption files of the picture, best first."""
        path = PurePosixPath(name)
        names = [f"{stem}{suffix}" for suffix in SUFFIXES for stem in (path, path.with_suffix(""))]
        found = [self.sidecars.get(name) or self.sidecars.get(key(name)) for name in names]
        return [path for path in found if path]

    def _read(self, path: Path) -> Caption:
        source = shown(path, self.root)
        return tidy(read_text(path, source, self.encoding), source)

    def _of_name(self, name: str) -> Caption:
        text = from_name(PurePosixPath(name).name) if self.from_file_names else ""
        if text:
            return Caption(text, "file name")
        note = ("no caption: the file name describes nothing",) if self.from_file_names else ()
        return Caption("", "none", note)


def key(name: str) -> str:
    """A path below the folder in one Unicode form, since captions and pictures may come from two systems."""
    return unicodedata.normalize("NFC", name)


def sidecars(files: Iterable[tuple[str, Path]]) -> dict[str, Path]:
    """Caption files from (posix path below the folder, path): by that path, and by its `key` where that is free.

    The suffix counts in lower case: `.TXT` is `.txt`, and the first of two stays.
    """
    exact: dict[str, Path] = {}
    for name, path in files:
        pure = PurePosixPath(name)
        exact.setdefault(f"{pure.with_suffix('')}{pure.suffix.lower()}", path)
    return {**{key(name): path for name, path in exact.items()}, **exact}


def read_text(path: Path, where: str, encoding: str | None, limit_bytes: int = MAX_CAPTION_BYTES) -> str:
    """The text of a caption or metadata file, called `where` in messages.

    Raises:
        InputError: unreadable, no regular file, larger than `limit_bytes`, or not text (see `decode`).
    """
    with reading(path, where) as file:
        raw = file.read(limit_bytes + 1)
    if len(raw) > limit_bytes:
        limit = f"at most {limit_bytes >> 20} MiB"
        raise InputError("too large for captions", where=where, expected=limit, advice="move it away")
    return decode(raw, encoding, where)


def require_encoding(encoding: str | None) -> None:
    """Raises `UsageError` where Python knows no text encoding of this name; None is fine."""
    try:
        b"?".decode(encoding or "utf-8", "replace")  # nothing at all would be decoded without a look at the name
    except LookupError as error:
        raise UsageError(
            f"there is no text encoding {encoding!r}", where="--caption-encoding",
            expected="cp1252, cp932, gb18030, utf-16-le, …", advice="check the name",
        ) from error  # fmt: skip


def decode(raw: bytes, encoding: str | None, where: str) -> str:
    """Bytes to text: by their mark (UTF-8, UTF-16, UTF-32), else as UTF-8, else as `encoding`.

    Valid UTF-8 beyond ASCII is hardly ever anything else, so it wins over a stated `encoding`, and a
    folder may mix both.

    Raises:
        InputError: the bytes are no such text; the first bad byte and its offset are named.
    """
    for mark, name in MARKS:
        if raw.startswith(mark):
            return _decoded(raw[len(mark) :], name, where, len(mark))
    if encoding is None and raw.count(0) * 4 > len(raw):
        raise InputError(
            "the text looks like UTF-16 without its mark", where=where, advice="give --caption-encoding utf-16-le"
        )
    return _decoded(raw, "utf-8" if encoding is None or _is_utf8(raw) else encoding, where, 0)


def _is_utf8(raw: bytes) -> bool:
    """True where the bytes say so: text of other encodings is seldom valid UTF-8 unless it is all ASCII."""
    if raw.isascii() or 0 in raw:
        return False
    try:
        raw.decode("utf-8")
    except UnicodeDecodeError:
        return False
    return True


def _decoded(raw: bytes, encoding: str, where: str, offset: int) -> str:
    try:
        return raw.decode(encoding)
    except UnicodeDecodeError as error:
        at = offset + error.start
        raise InputError(
            f"the text is not {encoding.upper()}: byte 0x{raw[error.start]:02x} at offset {at}", where=where,
            advice="save it as UTF-8, or say what it is: --caption-encoding cp1252 (Western), cp932 (Japanese)",
        ) from error  # fmt: skip


def tidy(text: str, source: str) -> Caption:
    """One line: lines are stripped and joined by a space, tabs become spaces, control characters go.

    Nothing else is touched: brackets, weights, `<lora:…>`, wildcards and HTML are words like any other.
    """
    lines = [line.strip() for line in text.replace("\t", " ").splitlines()]
    lines = [line for line in lines if line]
    joined = " ".join(lines)
    kept = "".join(char for char in joined if _is_kept(char)).strip()
    notes = []
    if len(lines) > 1:
        notes.append(f"caption: {len(lines)} lines joined")
    if len(kept) < len(joined):
        notes.append("caption: control characters dropped")
    if not kept:
        notes.append("caption is empty")
    return Caption(kept, source, tuple(notes))


def _is_kept(char: str) -> bool:
    """False for controls, halves of characters, and the two zero-width spaces (one is a stray byte-order mark)."""
    return char not in "\u200b\ufeff" and unicodedata.category(char) not in ("Cc", "Cs")


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
