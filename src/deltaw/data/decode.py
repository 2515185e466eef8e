"""From a file to pixels: read once, checked before and after decoding, whole or not at all."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import importlib
import io
import stat
import struct
import threading
import warnings
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from PIL import Image, ImageFile, UnidentifiedImageError

from deltaw.data import sniff
from deltaw.data.colour import to_srgb
from deltaw.data.walk import printable, special
from deltaw.errors import InputError

MAX_PIXELS = 100_000_000
"""Refused by the header beyond it, before any pixel is decoded; about 400 MB of memory in Pillow."""
LARGE_PIXELS = 25_000_000
"""Beyond it pictures are decoded one at a time, whatever the number of threads: memory is bounded by one of them."""
MAX_SIDE_PX = 30_000
MIN_SIDE_PX = 16
"""Nothing that a base draws fits in less."""

BROKEN = (
    OSError, SyntaxError, ValueError, TypeError, EOFError, LookupError, AttributeError, ArithmeticError,
    RuntimeError, MemoryError, AssertionError, struct.error, zlib.error, Image.DecompressionBombError,
)  # fmt: skip
"""What Pillow's decoders raise for damaged files; their bugs included, since a file must not stop a run."""

ORIENTATION_TAG = 0x0112
UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT, 3: Image.Transpose.ROTATE_180, 4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE, 6: Image.Transpose.ROTATE_270, 7: Image.Transpose.TRANSVERSE, 8: Image.Transpose.ROTATE_90,
}  # fmt: skip
"""EXIF orientation to what undoes it (EXIF 2.32, 4.6.4); 1 is upright and 0 is "not known"."""

_ONE_LARGE = threading.Lock()

DNG_VERSION_TAG, SUBFILE_TAG, SUB_IFDS_TAG = 50706, 254, 330


@dataclass(frozen=True)
class Decoded:
    """A picture in mode RGB, what was done to it, and the sha256 (hex) of the file it came from."""

    image: Image.Image
    notes: tuple[str, ...]
    digest: str


def decode(path: str | Path) -> Decoded:
    """The file's picture: RGB, upright, in sRGB, transparency on white, the first frame of several.

    To be called within `strict`.

    Raises:
        InputError: no picture, damaged, too large, too small, or all transparent.
    """
    with reading(path) as file:
        kind = sniff.kind(file.read(sniff.HEAD_BYTES))
        file.seek(0)
        digest = hashlib.file_digest(file, "sha256").hexdigest()
        file.seek(0)
        image, notes = _decode(file, kind)
    return Decoded(image, notes, digest)


def peek(path: str | Path) -> sniff.Kind:
    """What the file is, by its content.

    Raises:
        InputError: it cannot be read.
    """
    with reading(path) as file:
        return sniff.kind(file.read(sniff.HEAD_BYTES))


@contextlib.contextmanager
def reading(path: str | Path, where: str = "") -> Iterator[io.BufferedReader]:
    """The open file, called `where` (else by its path) in messages. A pipe or device, which could block for ever, is not opened.

    Raises:
        InputError: missing, unreadable, no regular file, or whatever went wrong while it was open; it
            names the file.
    """
    where = where or printable(str(path))
    try:
        mode = Path(path).stat().st_mode
        if not stat.S_ISREG(mode):
            raise InputError(f"{special(mode)}, not a file", advice="remove it or leave it: it is not used")
        with Path(path).open("rb") as file:
            yield file
    except InputError as error:
        raise InputError(error.what, where=where, expected=error.expected, advice=error.advice) from error
    except OSError as error:  # missing, forbidden, a network drive that drops, a disk that fails
        raise InputError(
            f"cannot be read ({error.strerror or error})", where=where, advice="check that it is there and may be read"
        ) from error


@contextlib.contextmanager
def strict() -> Iterator[None]:
    """Pillow as it must be while pictures are decoded, whatever another library made of it.

    Files that are cut off fail, and Pillow's warnings are silent (what they say is found out here and
    told as notes). Both switches are Pillow's and Python's own and hold for all threads.
    """
    truncated, ImageFile.LOAD_TRUNCATED_IMAGES = ImageFile.LOAD_TRUNCATED_IMAGES, False
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        ImageFile.LOAD_TRUNCATED_IMAGES = truncated


def _decode(file: io.BufferedReader, kind: sniff.Kind) -> tuple[Image.Image, tuple[str, ...]]:
    if kind.pillow not in decoders():
        raise InputError(f"the file is {kind.name}, which cannot be read here", advice=kind.advice)
    try:
        image = Image.open(file, formats=(kind.pillow,))
        _check_size(image)
        _refuse_preview(image)
        with _ONE_LARGE if image.width * image.height > LARGE_PIXELS else contextlib.nullcontext():
            frames = _frames(image)
            image.load()
            image, turned = _upright(image)
            image, coloured = to_srgb(image)
    except BROKEN as error:
        advice = "scale it down" if isinstance(error, Image.DecompressionBombError | MemoryError) else sniff.FETCH_AGAIN
        raise InputError(_damage(kind, error), advice=advice) from error
    return image, (*frames, *turned, *coloured)


@functools.cache
def decoders() -> frozenset[str]:
    """Pillow's names of the formats that can be read here, with the plugins that are installed."""
    Image.init()
    with contextlib.suppress(ImportError):
        importlib.import_module("pillow_heif").register_heif_opener()
    with contextlib.suppress(ImportError):
        importlib.import_module("pillow_jxl")
    return frozenset(Image.OPEN)


def _check_size(image: Image.Image) -> None:
    w, h = image.size
    if w * h > MAX_PIXELS or max(w, h) > MAX_SIDE_PX:
        raise InputError(
            f"the file declares {w}×{h} pixels", expected=f"at most {MAX_PIXELS // 10**6} megapixels and {MAX_SIDE_PX} a side",
            advice="scale it down",
        )  # fmt: skip
    if min(w, h) < MIN_SIDE_PX:
        raise InputError(
            f"{w}×{h} pixels are too few", expected=f"at least {MIN_SIDE_PX} a side", advice="use a larger one"
        )


def _refuse_preview(image: Image.Image) -> None:
    """DNG and TIFF/EP raw files open as TIFF, but what Pillow finds first is a small preview."""
    tags = getattr(image, "tag_v2", {})
    if tags.get(DNG_VERSION_TAG) or (tags.get(SUBFILE_TAG) == 1 and tags.get(SUB_IFDS_TAG)):
        raise InputError(f"the file is {sniff.RAW.name}, which cannot be read here", advice=sniff.RAW.advice)


def _frames(image: Image.Image) -> tuple[str, ...]:
    if image.format == "MPO" or not getattr(image, "is_animated", False):
        return ()  # the other frames of a phone's MPO are previews and depth
    return ("several pages: the first one",) if image.format == "TIFF" else ("animated: first frame",)


def _upright(image: Image.Image) -> tuple[Image.Image, tuple[str, ...]]:
    """Undoes the EXIF orientation of JPEG, PNG, WebP and AVIF; Pillow itself turns TIFF."""
    try:
        exif = image.getexif()
        orientation = exif.get(ORIENTATION_TAG, 1)
        turn = UPRIGHT.get(orientation)
    except BROKEN:
        return image, ("damaged EXIF: taken as it is",)
    if turn is not None:
        turned = image.transpose(turn)
        turned.info = image.info
        return turned, ("EXIF rotated",)
    if orientation not in (0, 1):
        return image, (f"EXIF orientation {orientation!r} means nothing: taken as it is",)
    return image, () if len(exif) or not image.info.get("exif") else ("damaged EXIF: taken as it is",)


def _damage(kind: sniff.Kind, error: BaseException) -> str:
    if isinstance(error, Image.DecompressionBombError):
        return f"the {kind.name} file declares far too many pixels"
    if isinstance(error, MemoryError):
        return f"the {kind.name} file needs more memory than there is"
    if isinstance(error, UnidentifiedImageError):
        return f"the {kind.name} file is damaged or cut off (its decoder refuses it)"
    if "truncated" in str(error).lower():
        return f"the {kind.name} file is cut off ({error})"
    return f"the {kind.name} file is damaged ({str(error) or type(error).__name__})"
