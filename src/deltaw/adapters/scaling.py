"""The scale of a low-rank change, alpha / r, computed here and nowhere else; and the type that maths is done in."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


def by_rank(tensors: Mapping[str, torch.Tensor], rank: int) -> float:
    """alpha / r; a missing alpha means alpha = r, so 1; without a rank there is nothing to scale, so 0."""
    if "alpha" not in tensors:
        return 1.0
    return float(tensors["alpha"].reshape(())) / rank if rank else 0.0


def computing(tensor: torch.Tensor) -> torch.dtype:
    """The type that a tensor is computed in: float64 for float64, float32 for all that is narrower."""
    import torch

    return torch.float64 if tensor.dtype == torch.float64 else torch.float32


def is_finite(tensor: torch.Tensor) -> bool:
    """No number is NaN or infinite. The extremes tell, and cost a twentieth of a look at every number."""
    import torch

    if not tensor.is_floating_point() or not tensor.numel():
        return True
    low, high = torch.aminmax(tensor if tensor.dtype.itemsize > 1 else tensor.float())
    return math.isfinite(low.item()) and math.isfinite(high.item())
