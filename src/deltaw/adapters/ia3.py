"""(IA)³: ΔW = W ⊙ v, a factor a row or a column (Liu et al. 2022, arXiv 2205.05638)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING

from deltaw.adapters.scaling import computing

if TYPE_CHECKING:
    import torch

NAME = "ia3"
TENSORS = ("weight", "on_input")
OPTIONAL = ()


def fits(shapes: Mapping[str, tuple[int, ...]], shape: tuple[int, ...]) -> str:
    """Why tensors of these shapes cannot change a weight of `shape`, or "" if they can."""
    n = math.prod(shapes["weight"])
    return "" if n in shape[:2] else f"{n} factors for a base weight of {list(shape)}"


def init(shape: tuple[int, ...], rank: int, alpha: float, generator: torch.Generator) -> dict[str, torch.Tensor]:
    """Zero factors on the output; rank, alpha and randomness play no part."""
    import torch

    return {"weight": torch.zeros(shape[0]), "on_input": torch.tensor(0)}


def delta(
    tensors: Mapping[str, torch.Tensor], shape: tuple[int, ...], base: torch.Tensor | None = None
) -> torch.Tensor:
    """W scaled by the factors, at least float32.

    Raises:
        ValueError: `base` is not given.
    """

    if base is None:
        raise ValueError("(IA)³ multiplies the base's weight, which is not given")
    factors = tensors["weight"].to(computing(base)).flatten()
    axis = 1 if int(tensors["on_input"]) else 0
    return base.to(factors.dtype).reshape(shape) * factors.reshape(*(-1 if i == axis else 1 for i in range(len(shape))))
