"""DoRA, a modifier of any algorithm: W' = m · (W + ΔW) / ‖W + ΔW‖ (Liu et al. 2024, arXiv 2402.09353, equation 5).

The norms run along all axes but one. `magnitude (out, 1…)` has one a row (LyCORIS' default, PEFT),
`(1, in, 1…)` one a column (the paper, OneTrainer's default); the shape tells which.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


def fits(magnitude: tuple[int, ...], shape: tuple[int, ...]) -> str:
    """Why norms of this shape cannot go with a weight of `shape`, or ""."""
    rows = magnitude[:2] in ((shape[0],), (shape[0], 1), (1, shape[0]))
    if rows or magnitude[:2] == (1, *shape[1:2]):
        return ""
    return f"DoRA norms {list(magnitude)} fit neither the rows nor the columns of the base's weight {list(shape)}"


def delta(magnitude: torch.Tensor, change: torch.Tensor, base: torch.Tensor) -> torch.Tensor:
    """The dense difference W' − W.

    Args:
        magnitude: m, `(out, 1…)` or `(1, in, 1…)`.
        change: the algorithm's own ΔW of `(out, in[, kh, kw])`.
        base: W of the same shape.
    """
    whole = base.to(change.dtype).reshape(change.shape) + change
    kept = 1 if magnitude.shape[0] == 1 and magnitude.ndim > 1 and magnitude.shape[1] != 1 else 0
    axes = [axis for axis in range(whole.ndim) if axis != kept]
    norms = whole.pow(2).sum(dim=axes, keepdim=True).sqrt()
    wanted = magnitude.to(change.dtype).reshape(*(-1 if axis == kept else 1 for axis in range(whole.ndim)))
    return whole * (wanted / norms.clamp_min(1e-12)) - base.to(change.dtype).reshape(change.shape)
