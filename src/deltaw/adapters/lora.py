"""LoRA: ΔW = (alpha / r) · up · down (Hu et al. 2021, arXiv 2106.09685, equation 3).

For a convolution, `down` is the k×k convolution to r channels and `up` the 1×1 one from them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch

NAME = "lora"
TENSORS = ("up", "down")


def scale(tensors: Mapping[str, torch.Tensor]) -> float:
    """alpha / r; a missing alpha means alpha = r, so 1. The only place that divides the two."""
    rank = tensors["down"].shape[0]
    if "alpha" not in tensors:
        return 1.0
    return float(tensors["alpha"].reshape(())) / rank if rank else 0.0


def init(shape: tuple[int, ...], rank: int, alpha: float, generator: torch.Generator) -> dict[str, torch.Tensor]:
    """`up (out, r[, 1, 1])` zero, `down (r, in[, kh, kw])` Kaiming uniform with a = √5, as PEFT and kohya.

    Args:
        shape: of the base weight, `(out, in)` or `(out, in, kh, kw)`.
        rank: r, at least 1.
        alpha: the numerator of the scale.
        generator: the only source of randomness.
    """
    n_out, *rest = shape
    kernel = shape[2:]
    fan_in = math.prod(rest)
    bound = 1 / math.sqrt(fan_in)  # Kaiming with a = √5: gain √(1/3), bound = gain · √(3 / fan_in)
    down = torch.empty(rank, *rest).uniform_(-bound, bound, generator=generator)
    return {"up": torch.zeros(n_out, rank, *(1 for _ in kernel)), "down": down, "alpha": torch.tensor(float(alpha))}


def delta(tensors: Mapping[str, torch.Tensor], shape: tuple[int, ...], base: torch.Tensor | None = None) -> torch.Tensor:
    """(alpha / r) · up · down as a tensor of `shape (out, in[, kh, kw])`, at least float32."""
    dtype = torch.promote_types(tensors["up"].dtype, torch.float32)
    up, down = tensors["up"].to(dtype), tensors["down"].to(dtype)
    return (scale(tensors) * (up.flatten(1) @ down.flatten(1))).reshape(shape)
