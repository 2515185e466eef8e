"""(IA)³: ΔW = W ⊙ v, a factor a row or a column (Liu et al. 2022, arXiv 2205.05638)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from deltaw.adapters import rows
from deltaw.adapters.scaling import computing

if TYPE_CHECKING:
    import torch

NAME = "ia3"
TENSORS = ("weight", "on_input")
OPTIONAL = ()
SUFFIXES = {"weight": "weight", "on_input": "on_input"}
RANKED = ()
NEEDS_BASE = True
cannot_split = rows.always


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


def factors(tensors: Mapping[str, torch.Tensor], shape: tuple[int, ...]) -> None:
    """None: it depends on W."""


def split_rows(tensors: rows.Tensors, n_rows: Sequence[int]) -> list[dict[str, torch.Tensor]]:
    """The changes of stacked modules: factors on the output are theirs, those on the input are everyone's."""
    return rows.split(tensors, n_rows, _axes(tensors))


def join_rows(parts: Sequence[rows.Tensors | None], n_rows: Sequence[int]) -> dict[str, torch.Tensor]:
    """One change of the stacked weight.

    Raises:
        ValueError: factors on the input differ or are not everyone's, or the modules are not alike.
    """
    axes = _axes(next(part for part in parts if part is not None))
    return rows.join(parts, n_rows, axes, absent=0.0 if axes else None)


def _axes(tensors: rows.Tensors) -> dict[str, int]:
    if int(tensors["on_input"]):
        return {}
    shape = tensors["weight"].shape
    return {"weight": next((axis for axis, n in enumerate(shape) if n > 1), 0)}
