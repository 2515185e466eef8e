"""Aspect-ratio buckets: the shapes that pictures are trained in.

A bucket is a (width, height) in pixels, both multiples of `step_px`, of at most `resolution_px`²
pixels, so that the square is always the largest and memory is known before the run. Pure arithmetic.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from functools import lru_cache

from deltaw.errors import UsageError

MAX_ASPECT = 2.0
"""The longest bucket; a panorama is cut to it and the share that is lost is said."""
MAX_UPSCALE = 2.0
"""A picture is enlarged up to this factor; a smaller one gets a smaller bucket first."""
CROP_WORTH_SAYING = 0.15

Size = tuple[int, int]


def bucket(size_px: Size, resolution_px: int, step_px: int = 64) -> Size:
    """The bucket that cuts the least off a picture of `size_px` (width, height).

    A picture that would be enlarged more than `MAX_UPSCALE` gets the same choice at a lower
    resolution, down to half: below that a base draws nothing it was taught, so the picture is
    enlarged further there and `notes` says so.

    Raises:
        UsageError: `resolution_px` is no multiple of `step_px`.
    """
    if resolution_px < step_px or resolution_px % step_px:
        raise UsageError(
            f"resolution {resolution_px} is no multiple of {step_px}",
            expected=f"{max(step_px, resolution_px // step_px * step_px)} or {(resolution_px // step_px + 1) * step_px}",
            advice="choose one of them",
        )
    lowest = math.ceil(resolution_px / 2 / step_px) * step_px
    chosen = (resolution_px, resolution_px)
    for resolution in range(resolution_px, lowest - 1, -step_px):
        chosen = min(ladder(resolution, step_px), key=lambda shape: (crop_share(size_px, shape), -shape[0] * shape[1]))
        if upscale(size_px, chosen) <= MAX_UPSCALE:
            break
    return chosen


@lru_cache
def ladder(resolution_px: int, step_px: int = 64) -> tuple[Size, ...]:
    """Every width with the largest height that keeps within resolution² pixels and `MAX_ASPECT`."""
    shapes = []
    for width in range(step_px, 2 * resolution_px + 1, step_px):
        height = resolution_px**2 // width // step_px * step_px
        if height and max(width, height) <= MAX_ASPECT * min(width, height):
            shapes.append((width, height))
    wide = {(w, h) for w, h in shapes if w >= h}
    return tuple(sorted(wide | {(h, w) for w, h in wide}))


def assign(sizes: Iterable[Size], resolution_px: int, step_px: int = 64) -> dict[Size, list[int]]:
    """Bucket to the positions in `sizes` of its pictures; every position is in exactly one bucket."""
    found: dict[Size, list[int]] = {}
    for index, size in enumerate(sizes):
        found.setdefault(bucket(size, resolution_px, step_px), []).append(index)
    return dict(sorted(found.items()))


def crop_share(size_px: Size, bucket_px: Size) -> float:
    """The share of the picture (0 to 1) that filling the bucket cuts off."""
    (w, h), (bw, bh) = size_px, bucket_px
    return 1 - min(w * bh, h * bw) / max(w * bh, h * bw)


def upscale(size_px: Size, bucket_px: Size) -> float:
    """How many times larger the picture is drawn to fill the bucket; below 1 it is reduced."""
    return max(bucket_px[0] / size_px[0], bucket_px[1] / size_px[1])


def notes(size_px: Size, bucket_px: Size, resolution_px: int) -> tuple[str, ...]:
    """What a user should know of a picture in its bucket; nothing where nothing is lost."""
    (w, h), (bw, bh) = size_px, bucket_px
    said = []
    share, factor = crop_share(size_px, bucket_px), upscale(size_px, bucket_px)
    if share > CROP_WORTH_SAYING:
        said.append(f"{share:.0%} is cut off to fit {bw}×{bh} (the picture is {w}×{h})")
    if factor > MAX_UPSCALE:
        said.append(f"enlarged {factor:.1f} times to {bw}×{bh} (the picture is {w}×{h}): it will teach blur")
    elif max(bw, bh) < resolution_px:
        said.append(f"small ({w}×{h}): trained at {bw}×{bh} instead of about {resolution_px}×{resolution_px}")
    return tuple(said)
