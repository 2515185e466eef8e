"""What a picture looks like in a few numbers: how sharp, how flat, and which others it resembles."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from typing import Any

import numpy as np
import PIL
from PIL import Image, ImageOps

from deltaw.data import reading
from deltaw.data.folder import Dataset
from deltaw.data.image import read
from deltaw.data.remembered import remembering
from deltaw.events import Phase, Tell, Tick, silent

CODE_VERSION = "1"
"""Raise it when other numbers are found in the same picture."""
KIND = "looks"
LONGEST_PX = 512
"""Pictures are measured at this size, so that the numbers of small and large ones compare."""
THUMB_PX = 24
BLUR_WINDOW_PX = 9
HASHED_PX, HASHED_WAVES = 32, 8
"""Side of the picture that is hashed, and how many of its lowest frequencies are looked at in each direction."""
_WAVES = np.cos(np.pi / HASHED_PX * np.outer(np.arange(HASHED_WAVES), np.arange(HASHED_PX) + 0.5))


@dataclass(frozen=True)
class Looks:
    """A picture's measures.

    Args:
        spread: standard deviation of its grey levels, 0 (one colour) to 127.
        blur: 0 (sharp) to 1 (nothing but blur), as in Crété et al. (2007); see `blur`.
        hash: perceptual hash (DCT), 64 bits.
        mirrored: the hash of its mirror image.
        thumb: grey levels at `THUMB_PX`², row by row.
    """

    spread: float
    blur: float
    hash: int
    mirrored: int
    thumb: bytes


def look_at(dataset: Dataset, tell: Tell = silent) -> Iterator[Looks]:
    """The looks of each picture of a folder, in order; every file is read once more, unless its looks are known (`data.remembered`).

    Raises:
        InputError: a picture is gone or changed since it was scanned.
    """
    pictures = dataset.pictures
    tell(Phase("looking at pictures", len(pictures), "pictures"))
    with remembering(KIND, dataset.root, [CODE_VERSION, PIL.__version__, np.__version__]) as memory:
        known = [_recalled(memory[picture.digest]) for picture in pictures]
        new = [picture for picture, seen in zip(pictures, known, strict=True) if seen is None]
        with closing(reading.ahead(lambda picture: looks(read(picture.path, digest=picture.digest)), new)) as found:
            for n_done, (picture, recalled) in enumerate(zip(pictures, known, strict=True), start=1):
                seen = recalled or next(found)
                memory.keep(picture.digest, _entry(seen))
                yield seen
                tell(Tick(n_done, picture.name))


def _entry(seen: Looks) -> list[Any]:
    return [seen.spread, seen.blur, seen.hash, seen.mirrored, base64.b64encode(seen.thumb).decode()]


def _recalled(entry: Any) -> Looks | None:
    try:
        (spread, blurred, code, mirrored, thumb) = entry
        seen = Looks(float(spread), float(blurred), int(code), int(mirrored), base64.b64decode(thumb, validate=True))
    except (TypeError, ValueError, OverflowError):
        return None
    is_sound = len(seen.thumb) == THUMB_PX**2 and all(0 <= bits < 1 << 64 for bits in (seen.hash, seen.mirrored))
    return seen if is_sound else None


def looks(image: Image.Image) -> Looks:
    """Measures an RGB picture."""
    grey = image.convert("L")
    grey.thumbnail((LONGEST_PX, LONGEST_PX), Image.Resampling.LANCZOS)
    levels = np.asarray(grey, dtype=np.float32)
    thumb = grey.resize((THUMB_PX, THUMB_PX), Image.Resampling.BOX)
    return Looks(float(levels.std()), blur(levels), _hash(grey), _hash(ImageOps.mirror(grey)), thumb.tobytes())


def _hash(grey: Image.Image) -> int:
    """64 bits that pictures which look alike share but for a few: whether each of the lowest frequencies is above their median.

    Zauner, Implementation and benchmarking of perceptual image hash functions (2010), section 3.2.1; the same bits as the library ImageHash
    finds, which needs scipy: where that is installed transformers imports it, in a fifth of a run's start and with 59 MB.
    """
    levels = np.asarray(grey.resize((HASHED_PX, HASHED_PX), Image.Resampling.LANCZOS), dtype=np.float64)
    low = _WAVES @ levels @ _WAVES.T
    return int("".join("01"[int(bit)] for bit in (low > np.median(low)).flat), 2)


def blur(grey: np.ndarray) -> float:
    """How little a picture `(h, w)` changes when it is blurred once more, 0 (sharp) to 1.

    Crété, Dolmière, Ladret, Nicolas: The blur effect: perception and estimation with a new
    no-reference perceptual blur metric (2007). Independent of what is drawn, unlike the variance of the Laplacian.
    """
    return max(_blur_along(grey), _blur_along(grey.T))


def _blur_along(grey: np.ndarray) -> float:
    if grey.shape[0] <= BLUR_WINDOW_PX:
        return 0.0
    sums = np.cumsum(np.pad(grey, ((1, 0), (0, 0))), axis=0, dtype=np.float64)
    smooth = (sums[BLUR_WINDOW_PX:] - sums[:-BLUR_WINDOW_PX]) / BLUR_WINDOW_PX
    margin = BLUR_WINDOW_PX // 2
    steps = np.abs(np.diff(grey[margin : margin + len(smooth)], axis=0))
    lost = np.maximum(0, steps - np.abs(np.diff(smooth, axis=0)))
    total = float(steps.sum())
    return float((total - lost.sum()) / total) if total else 0.0
