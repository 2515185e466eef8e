"""A picture file as training sees it: decoded whole, upright, sRGB on white, of a sane size."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import importlib
import io
import stat
import struct
import warnings
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageFile, UnidentifiedImageError

from deltaw.data import sniff
from deltaw.data.colour import to_srgb
from deltaw.data.walk import special
from deltaw.errors import InputError

MAX_PIXELS = 100_000_000
"""Refused by the header beyond it, before any pixel is decoded; about 400 MB of memory in Pillow."""
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
"""EXIF orientation to what undoes it (EXIF 2.32, 4.6.4); 1 is upright."""


@dataclass(frozen=True)
class Decoded:
    """A picture in mode RGB, what was done to it, and the sha256 (hex) of the file it came from."""

    image: Image.Image
    notes: tuple[str, ...]
    digest: str


def load(path: str | Path, *, digest: str = "") -> Image.Image:
    """The picture in mode RGB, upright, in sRGB, transparency on white; the first frame of several.

    Args:
        path: any file; its content decides what it is.
        digest: the sha256 (hex) that the file is expected to have, where one is known.

    Raises:
        InputError: no picture, damaged, too large, too small, all transparent, or changed since `digest`.
    """
    decoded = decode(path)
    if digest and digest != decoded.digest:
        raise InputError(
            "the picture changed since it was scanned", where=path, expected=f"sha256 {digest[:12]}…, found {decoded.digest[:12]}…",
            advice="start again so that the plan fits the pictures",
        )  # fmt: skip
    return decoded.image


def decode(path: str | Path) -> Decoded:
    """As `load`, with the notes and the digest."""
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
def reading(path: str | Path) -> Iterator[io.BufferedReader]:
    """The open file; what fails while it is open is an `InputError` that names it."""
    try:
        with open_regular(path) as file:
            yield file
    except InputError as error:
        raise InputError(error.what, where=path, expected=error.expected, advice=error.advice) from error
    except OSError as error:  # a network drive that drops, a disk that fails
        raise InputError(
            f"reading failed ({error.strerror or error})", where=path, advice="check the disk or the network"
        ) from error


def open_regular(path: str | Path) -> io.BufferedReader:
    """Opens a file for reading; a pipe or device, which could block for ever, is refused.

    Raises:
        InputError: missing, a dangling or circular link, unreadable, or no regular file.
    """
    try:
        mode = Path(path).stat().st_mode
        if not stat.S_ISREG(mode):
            raise InputError(f"{special(mode)}, not a file", where=path, advice="remove it or leave it: it is not used")
        return Path(path).open("rb")
    except OSError as error:
        raise InputError(
            f"cannot be read ({error.strerror})", where=path, advice="check that it is there and may be read"
        ) from error


def _decode(file: io.BufferedReader, kind: sniff.Kind) -> tuple[Image.Image, tuple[str, ...]]:
    if kind.pillow not in _decoders():
        raise InputError(f"the file is {kind.name}, which cannot be read here", advice=kind.advice)
    with _strict() as complaints:
        try:
            image = Image.open(file, formats=(kind.pillow,))
            _check_size(image)
            notes = _frames(image)
            image.load()
            image, turned = _upright(image)
            image, coloured = to_srgb(image)
        except BROKEN as error:
            raise InputError(_damage(kind, error), advice=sniff.FETCH_AGAIN) from error
    if any("EXIF" in text for text in complaints) and not turned:
        turned = ("damaged EXIF: taken as it is",)
    return image, (*notes, *turned, *coloured)


@functools.cache
def _decoders() -> frozenset[str]:
    """Pillow's names of the formats that can be read here, with the plugins that are installed."""
    Image.init()
    with contextlib.suppress(ImportError):
        importlib.import_module("pillow_heif").register_heif_opener()
    with contextlib.suppress(ImportError):
        importlib.import_module("pillow_jxl")
    return frozenset(Image.OPEN)


@contextlib.contextmanager
def _strict() -> Iterator[list[str]]:
    """Pillow as it must be here, whatever another library made of it: whole files only, warnings collected.

    Neither switch of Pillow is per call or per thread, so pictures are decoded one after another.
    """
    truncated, ImageFile.LOAD_TRUNCATED_IMAGES = ImageFile.LOAD_TRUNCATED_IMAGES, False
    complaints: list[str] = []
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            yield complaints
            complaints += [str(warning.message) for warning in caught]
    finally:
        ImageFile.LOAD_TRUNCATED_IMAGES = truncated


def _check_size(image: Image.Image) -> None:
    """Refuses by the header alone; also a raw file's embedded preview posing as the picture."""
    w, h = image.size
    if w * h > MAX_PIXELS or max(w, h) > MAX_SIDE_PX:
        raise InputError(
            f"the file declares {w}×{h} pixels", expected=f"at most {MAX_PIXELS // 10**6} megapixels and {MAX_SIDE_PX} a side",
            advice="scale it down",
        )  # fmt: skip
    if min(w, h) < MIN_SIDE_PX:
        raise InputError(
            f"{w}×{h} pixels are too few", expected=f"at least {MIN_SIDE_PX} a side", advice="use a larger picture"
        )
    tags = getattr(image, "tag_v2", {})
    if tags.get(50706) or (
        tags.get(254) == 1 and tags.get(330)
    ):  # DNGVersion; a reduced picture with SubIFDs (TIFF/EP)
        raise InputError(f"the file is {sniff.RAW.name}, which cannot be read here", advice=sniff.RAW.advice)


def _frames(image: Image.Image) -> tuple[str, ...]:
    if image.format == "MPO" or not getattr(image, "is_animated", False):
        return ()  # the other frames of a phone's MPO are previews and depth
    return ("several pages: the first one",) if image.format == "TIFF" else ("animated: first frame",)


def _upright(image: Image.Image) -> tuple[Image.Image, tuple[str, ...]]:
    """Undoes the EXIF orientation (JPEG, PNG, WebP, AVIF; Pillow itself turns TIFF)."""
    try:
        orientation = image.getexif().get(ORIENTATION_TAG, 1)
        turn = UPRIGHT.get(orientation)
    except BROKEN:
        return image, ("damaged EXIF: taken as it is",)
    if turn is None:
        return image, () if orientation in (0, 1) else (
            f"EXIF orientation {orientation!r} means nothing: taken as it is",
        )
    turned = image.transpose(turn)
    turned.info = image.info
    return turned, ("EXIF rotated",)


def _damage(kind: sniff.Kind, error: BaseException) -> str:
    if isinstance(error, Image.DecompressionBombError):
        return f"the {kind.name} file declares far too many pixels"
    if isinstance(error, MemoryError):
        return f"the {kind.name} file needs more memory than there is"
    if isinstance(error, UnidentifiedImageError):
        return f"the {kind.name} file is damaged (its header makes no sense)"
    if "truncated" in str(error).lower():
        return f"the {kind.name} file is cut off ({error})"
    return f"the {kind.name} file is damaged ({str(error) or type(error).__name__})"


def crop_box(size_px: tuple[int, int], bucket_px: tuple[int, int]) -> tuple[int, int, int, int]:
    """The part (left, top, right, bottom; px) of a picture of `size_px` that fills `bucket_px`: its middle."""
    (w, h), (bw, bh) = size_px, bucket_px
    cw = min(w, max(1, round(h * bw / bh)))
    ch = min(h, max(1, round(w * bh / bw)))
    left, top = (w - cw) // 2, (h - ch) // 2
    return left, top, left + cw, top + ch


def fit(image: Image.Image, bucket_px: tuple[int, int]) -> np.ndarray:
    """The middle of an RGB picture scaled to fill the bucket: uint8 `(h, w, 3)`, antialiased (Lanczos)."""
    box = crop_box(image.size, bucket_px)
    return np.array(image.resize(bucket_px, Image.Resampling.LANCZOS, box=box))
