"""Full: ΔW itself, of any shape; also what norms get (`w_norm`), and a change of the bias alone."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from deltaw.adapters.scaling import computing

if TYPE_CHECKING:
    import torch

NAME = "full"
TENSORS = ()
OPTIONAL = ("diff",)


def fits(shapes: Mapping[str, tuple[int, ...]], shape: tuple[int, ...]) -> str:
    """Why tensors of these shapes cannot change a weight of `shape`, or "" if they can."""
    if "diff" in shapes and shapes["diff"] != shape:
        return f"the change is {list(shapes['diff'])}, the base's weight {list(shape)}"
    if "bias" in shapes and shapes["bias"] != shape[:1]:
        return f"the change of the bias is {list(shapes['bias'])}, the base's weight {list(shape)}"
    return ""


def init(shape: tuple[int, ...], rank: int, alpha: float, generator: torch.Generator) -> dict[str, torch.Tensor]:
    """Zero; rank, alpha and randomness play no part."""
    import torch

    return {"diff": torch.zeros(shape)}


def delta(
    tensors: Mapping[str, torch.Tensor], shape: tuple[int, ...], base: torch.Tensor | None = None
) -> torch.Tensor:
    """`diff`, at least float32; zero where only the bias changes."""
    import torch

    if "diff" not in tensors:
        return torch.zeros(shape)
    return tensors["diff"].to(computing(tensors["diff"])).reshape(shape)
