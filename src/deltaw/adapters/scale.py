"""(IA)³ as PEFT keeps it: W' = W ⊙ l, a factor a row `(out, 1…)` or a column `(1, in, 1…)` (Liu et al. 2022, arXiv 2205.05638).

LyCORIS' (`ia3`) keeps l − 1, which is not the same number in a narrow type; so each stays as its file has it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from deltaw.adapters import rows
from deltaw.adapters.scaling import computing

if TYPE_CHECKING:
    import torch

NAME = "scale"
TENSORS = ("l",)
OPTIONAL = ()
SUFFIXES: dict[str, str] = {}
RANKED = ()
NEEDS_BASE = True
cannot_split = rows.always


def fits(shapes: Mapping[str, tuple[int, ...]], shape: tuple[int, ...]) -> str:
    """Why tensors of these shapes cannot change a weight of `shape`, or "" if they can."""
    factors = shapes["l"]
    per_row, per_column = (shape[0], 1), (1, *shape[1:2])
    flat = (1, shape[0], 1, 1)  # PEFT's factors of a convolution's output
    if factors[:2] in (per_row, per_column) or factors == flat:
        return ""
    return f"factors {list(factors)} fit neither the rows nor the columns of the base's weight {list(shape)}"


def init(shape: tuple[int, ...], rank: int, alpha: float, generator: torch.Generator) -> dict[str, torch.Tensor]:
    """A factor of 1 a row; rank, alpha and randomness play no part."""
    import torch

    return {"l": torch.ones(shape[0], *(1 for _ in shape[1:]))}


def delta(
    tensors: Mapping[str, torch.Tensor], shape: tuple[int, ...], base: torch.Tensor | None = None
) -> torch.Tensor:
    """W ⊙ (l − 1) as a tensor of `shape`, at least float32.

    Raises:
        ValueError: `base` is not given.
    """
    if base is None:
        raise ValueError("(IA)³ multiplies the base's weight, which is not given")
    factors = tensors["l"].to(computing(base))
    return base.to(factors.dtype).reshape(shape) * (factors - 1)


def factors(tensors: Mapping[str, torch.Tensor], shape: tuple[int, ...]) -> None:
    """None: it depends on W."""


def split_rows(tensors: rows.Tensors, n_rows: Sequence[int]) -> list[dict[str, torch.Tensor]]:
    """The changes of stacked modules: factors of rows are theirs, those of columns are everyone's."""
    return rows.split(tensors, n_rows, _axes(tensors))


def join_rows(parts: Sequence[rows.Tensors | None], n_rows: Sequence[int]) -> dict[str, torch.Tensor]:
    """One change of the stacked weight.

    Raises:
        ValueError: factors of columns differ or are not everyone's, or the modules are not alike.
    """
    axes = _axes(next(part for part in parts if part is not None))
    return rows.join(parts, n_rows, axes, absent=1.0 if axes else None)


def _axes(tensors: rows.Tensors) -> dict[str, int]:
    return {"l": 0} if tensors["l"].shape[0] > 1 else {}
