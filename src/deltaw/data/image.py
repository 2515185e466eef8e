"""A picture as training sees it: loaded, and the middle of it fitted into its bucket."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from deltaw.data.decode import decode, strict
from deltaw.data.walk import printable
from deltaw.errors import InputError


def load(path: str | Path, *, digest: str = "") -> Image.Image:
    """The picture in mode RGB, upright, in sRGB, transparency on white; the first frame of several.

    Not for several threads at once, which take `read` and `decode.strict` around all of them.

    Args:
        path: any file; its content decides what it is.
        digest: the sha256 (hex) that the file is expected to have, where one is known.

    Raises:
        InputError: no picture, damaged, too large, too small, all transparent, or changed since `digest`.
    """
    with strict():
        return read(path, digest=digest)


def read(path: str | Path, *, digest: str = "") -> Image.Image:
    """As `load`, to be called within `decode.strict`."""
    decoded = decode(path)
    if digest and digest != decoded.digest:
        raise InputError(
            "the picture changed since it was scanned", where=printable(str(path)),
            expected=f"sha256 {digest[:12]}…, found {decoded.digest[:12]}…",
            advice="start again so that the plan fits the pictures",
        )  # fmt: skip
    return decoded.image


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
