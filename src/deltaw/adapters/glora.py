"""GLoRA: ΔW = (alpha / r) · (W·a1·a2 + b1·b2) (Chavan et al. 2023, arXiv 2306.07967, as LyCORIS keeps it).

`a1 (in, r)`, `a2 (r, in)`, `b1 (out, r)`, `b2 (r, in[, kh, kw])`, each with trailing 1×1 for convolutions.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from deltaw.adapters import rows
from deltaw.adapters.scaling import by_rank, computing

if TYPE_CHECKING:
    import torch

NAME = "glora"
TENSORS = ("a1", "a2", "b1", "b2")
OPTIONAL = ()
SUFFIXES = {f"{name}.weight": name for name in TENSORS}
RANKED = ("a2",)
NEEDS_BASE = True
cannot_split = rows.always


def fits(shapes: Mapping[str, tuple[int, ...]], shape: tuple[int, ...]) -> str:
    """Why tensors of these shapes cannot change a weight of `shape`, or "" if they can."""
    a1, a2, b1, b2 = (shapes[name] for name in TENSORS)
    if a1[1:2] != a2[:1] or b1[1:2] != b2[:1]:
        return f"a1 {list(a1)}, a2 {list(a2)}, b1 {list(b1)} and b2 {list(b2)} do not share ranks"
    if (a1[0], a2[1]) != (shape[1], shape[1]) or (b1[0], math.prod(b2[1:])) != (shape[0], math.prod(shape[1:])):
        return f"a1 {list(a1)} and b1 {list(b1)}, b2 {list(b2)} do not fit the base's weight {list(shape)}"
    return ""


def init(shape: tuple[int, ...], rank: int, alpha: float, generator: torch.Generator) -> dict[str, torch.Tensor]:
    """`a2` and `b2` zero, `a1` and `b1` uniform, as LyCORIS."""
    import torch

    ones = (1,) * (len(shape) - 2)
    bound = 1 / math.sqrt(rank)
    return {
        "a1": torch.empty(shape[1], rank, *ones).uniform_(-bound, bound, generator=generator),
        "a2": torch.zeros(rank, shape[1], *ones),
        "b1": torch.empty(shape[0], rank, *ones).uniform_(-bound, bound, generator=generator),
        "b2": torch.zeros(rank, *shape[1:]),
        "alpha": torch.tensor(float(alpha)),
    }


def delta(
    tensors: Mapping[str, torch.Tensor], shape: tuple[int, ...], base: torch.Tensor | None = None
) -> torch.Tensor:
    """The change as a tensor of `shape`, at least float32.

    Raises:
        ValueError: `base` is not given.
    """
    import torch

    if base is None:
        raise ValueError("GLoRA multiplies the base's weight, which is not given")
    dtype = computing(tensors["b1"])
    a1, a2, b1, b2 = (tensors[name].to(dtype).flatten(1) for name in TENSORS)
    through = torch.einsum("oi...,ij->oj...", base.to(dtype).reshape(shape), a1 @ a2)
    return by_rank(tensors, a2.shape[0]) * (through + (b1 @ b2).reshape(shape))


def factors(tensors: Mapping[str, torch.Tensor], shape: tuple[int, ...]) -> None:
    """None: it depends on W."""


def split_rows(tensors: rows.Tensors, n_rows: Sequence[int]) -> list[dict[str, torch.Tensor]]:
    """The changes of stacked modules: rows of `b1`; what goes through W has W's own rows."""
    return rows.split(tensors, n_rows, {"b1": 0})


def join_rows(parts: Sequence[rows.Tensors | None], n_rows: Sequence[int]) -> dict[str, torch.Tensor]:
    """One change of the stacked weight.

    Raises:
        ValueError: the modules do not share the other factors, or one has no change.
    """
    return rows.join(parts, n_rows, {"b1": 0}, absent=None)
