"""Full: ΔW itself, of any shape; also what norms get (`w_norm`), and a change of the bias alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from deltaw.adapters import rows
from deltaw.adapters.scaling import computing

if TYPE_CHECKING:
    import torch

NAME = "full"
TENSORS = ()
OPTIONAL = ("diff",)
SUFFIXES = {"diff": "diff", "w_norm": "diff"}
RANKED = ()
NEEDS_BASE = False
cannot_split = rows.always


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


def factors(tensors: Mapping[str, torch.Tensor], shape: tuple[int, ...]) -> None:
    """None: there are none that are thinner."""


def split_rows(tensors: rows.Tensors, n_rows: Sequence[int]) -> list[dict[str, torch.Tensor]]:
    """The changes of stacked modules: rows."""
    return rows.split(tensors, n_rows, {"diff": 0})


def join_rows(parts: Sequence[rows.Tensors | None], n_rows: Sequence[int]) -> dict[str, torch.Tensor]:
    """One change of the stacked weight.

    Raises:
        ValueError: the modules are not alike.
    """
    return rows.join(parts, n_rows, {"diff": 0})
