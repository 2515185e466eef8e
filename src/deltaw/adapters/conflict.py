"""Sums of dense changes that keep conflicting entries from cancelling: TIES and DARE."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


def ties(changes: Sequence[torch.Tensor], density: float) -> torch.Tensor:
    """Trim, elect sign, disjoint mean (Yadav et al. 2023, arXiv 2306.01708, section 4).

    Args:
        changes: dense ΔW of one shape, each with its weight in it.
        density: share of the entries that survive trimming, the largest by magnitude, in (0, 1].
    """
    import torch

    trimmed = torch.stack([_largest(change, density) for change in changes])
    elected = trimmed.sum(0).sign()
    agreeing = trimmed * (trimmed.sign() == elected)
    return agreeing.sum(0) / (agreeing != 0).sum(0).clamp_min(1)


def dare(changes: Sequence[torch.Tensor], density: float, generator: torch.Generator) -> torch.Tensor:
    """Drop entries at random and rescale the rest, then sum (Yu et al. 2023, arXiv 2311.03099, equation 2).

    Args:
        changes: dense ΔW of one shape, each with its weight in it.
        density: probability with which an entry stays, in (0, 1]; the sum is right on average.
        generator: the only source of randomness.
    """
    import torch

    kept = [change * (torch.rand(change.shape, generator=generator) < density) / density for change in changes]
    return torch.stack(kept).sum(0)


def _largest(change: torch.Tensor, density: float) -> torch.Tensor:
    import torch

    n_kept = max(1, round(density * change.numel()))
    kept = change.abs().flatten().topk(n_kept).indices
    trimmed = torch.zeros_like(change).flatten()
    trimmed[kept] = change.flatten()[kept]
    return trimmed.reshape(change.shape)
