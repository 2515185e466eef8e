"""Sums of changes that keep conflicting entries from cancelling: TIES and DARE, a block of rows at a time."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

    Change = torch.Tensor | tuple[torch.Tensor, torch.Tensor]

BLOCK = 1 << 20
"""Entries of a block; the result alone is held whole, however many changes there are."""


def ties(changes: Sequence[Change], shape: Sequence[int], density: float) -> torch.Tensor:
    """Trim, elect sign, disjoint mean (Yadav et al. 2023, arXiv 2306.01708, section 4).

    Args:
        changes: of one weight, each with its factor in it: dense, or `up (out, k)` and `down (k, in·kh·kw)`.
        shape: of the weight.
        density: share of the entries that survive trimming, the largest by magnitude, in (0, 1].
    """
    import torch

    least = [_least_kept(change, shape, density) for change in changes]
    made = torch.empty(shape[0], math.prod(shape[1:]))
    for begin, end in _blocks(shape):
        blocks = [_rows(change, begin, end) for change in changes]
        trimmed = torch.stack([block * (block.abs() >= low) for block, low in zip(blocks, least, strict=True)])
        agreeing = trimmed * (trimmed.sign() == trimmed.sum(0).sign())
        made[begin:end] = agreeing.sum(0) / (agreeing != 0).sum(0).clamp_min(1)
    return made.reshape(tuple(shape))


def dare(changes: Sequence[Change], shape: Sequence[int], density: float, generator: torch.Generator) -> torch.Tensor:
    """Drop entries at random and rescale the rest, then sum (Yu et al. 2023, arXiv 2311.03099, equation 2).

    Args:
        changes, shape: as for `ties`.
        density: probability with which an entry stays, in (0, 1]; the sum is right on average.
        generator: the only source of randomness.
    """
    import torch

    made = torch.zeros(shape[0], math.prod(shape[1:]))
    for begin, end in _blocks(shape):
        for change in changes:
            block = _rows(change, begin, end)
            made[begin:end] += block * (torch.rand(block.shape, generator=generator) < density) / density
    return made.reshape(tuple(shape))


def _blocks(shape: Sequence[int]) -> Iterator[tuple[int, int]]:
    step = max(1, BLOCK // math.prod(shape[1:]))
    return ((begin, min(begin + step, shape[0])) for begin in range(0, shape[0], step))


def _rows(change: Change, begin: int, end: int) -> torch.Tensor:
    if isinstance(change, tuple):
        return change[0][begin:end] @ change[1]
    return change[begin:end].reshape(end - begin, -1)


def _least_kept(change: Change, shape: Sequence[int], density: float) -> float:
    """The magnitude from which on entries survive trimming; entries that are equal to it do, too."""
    import numpy as np

    magnitudes = np.concatenate([_rows(change, *block).abs().flatten().numpy() for block in _blocks(shape)])
    n_dropped = len(magnitudes) - max(1, round(density * len(magnitudes)))
    magnitudes.partition(n_dropped)
    return float(magnitudes[n_dropped])
