"""Adapter algorithms: one a file, pure functions, the same signatures (see `Algorithm`).

To add one: write `adapters/NAME.py` and put it in `ALL`. The contract test then checks it. The tensor
library is imported inside the functions that compute, so that reading a file's header needs none.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Protocol

from deltaw.adapters import dora, full, glora, ia3, loha, lokr, lora, oft, oft_input, scale

if TYPE_CHECKING:
    import torch

Tensors = Mapping[str, "torch.Tensor"]


class Algorithm(Protocol):
    """What a module in `adapters/` offers."""

    @property
    def NAME(self) -> str:
        """The name in `Update.algorithm`."""
        ...

    @property
    def TENSORS(self) -> tuple[str, ...]:
        """The canonical tensor names that an update needs."""
        ...

    @property
    def OPTIONAL(self) -> tuple[str, ...]:
        """Those it may have on top, besides `alpha`, `magnitude` (DoRA) and `bias`, which go with any."""
        ...

    @property
    def SUFFIXES(self) -> Mapping[str, str]:
        """Key suffix in LyCORIS' dialects to canonical tensor; none where they do not know the algorithm."""
        ...

    @property
    def RANKED(self) -> tuple[str, ...]:
        """The tensors whose first axis is the rank, by which alpha is divided."""
        ...

    @property
    def NEEDS_BASE(self) -> bool:
        """Whether ΔW depends on W."""
        ...

    @staticmethod
    def fits(shapes: Mapping[str, tuple[int, ...]], shape: tuple[int, ...]) -> str:
        """Why tensors of these shapes cannot change a weight of `shape`, or "" if they can."""
        ...

    @staticmethod
    def init(shape: tuple[int, ...], rank: int, alpha: float, generator: torch.Generator) -> dict[str, torch.Tensor]:
        """Float32 tensors for a base weight of `shape (out, in[, kh, kw])` whose delta is exactly 0."""
        ...

    @staticmethod
    def delta(tensors: Tensors, shape: tuple[int, ...], base: torch.Tensor | None = None) -> torch.Tensor:
        """The dense ΔW of `shape`, float32 (float64 if the tensors are). `base` is W where ΔW depends on it."""
        ...

    @staticmethod
    def factors(tensors: Tensors, shape: tuple[int, ...]) -> tuple[torch.Tensor, torch.Tensor] | None:
        """ΔW as exact `up (out, k)` and `down (k, in·kh·kw)`, or None where it has none thinner than itself."""
        ...

    @staticmethod
    def cannot_split(shapes: Mapping[str, tuple[int, ...]], n_rows: Sequence[int]) -> str:
        """Why a change of stacked modules of `n_rows` rows cannot be told apart into theirs, or ""."""
        ...

    @staticmethod
    def split_rows(tensors: Tensors, n_rows: Sequence[int]) -> list[dict[str, torch.Tensor]]:
        """The changes of the stacked modules, exact. Raises ValueError where that cannot be."""
        ...

    @staticmethod
    def join_rows(parts: Sequence[Tensors | None], n_rows: Sequence[int]) -> dict[str, torch.Tensor]:
        """One change of the stacked weight; None is a module without one. Raises ValueError where that cannot be."""
        ...


ALL: tuple[Algorithm, ...] = (lora, loha, lokr, ia3, scale, oft, oft_input, glora, full)
"""Every algorithm, in the order in which files are matched."""

COMMON = ("alpha", "magnitude", "bias")
"""Tensors that go with any algorithm: the scale's numerator, DoRA's norms, the change of the bias."""


def needs_base(algorithm: str, tensors: Mapping[str, object]) -> bool:
    """Whether the ΔW of such an update can only be computed with the base's weight."""
    return named(algorithm).NEEDS_BASE or "magnitude" in tensors


def rank(algorithm: str, shapes: Mapping[str, tuple[int, ...]]) -> int | None:
    """The rank of an update with tensors of these shapes; None where the algorithm has none."""
    return next((shapes[name][0] for name in named(algorithm).RANKED if name in shapes), None)


def fits(algorithm: str, shapes: Mapping[str, tuple[int, ...]], shape: tuple[int, ...]) -> str:
    """Why an update with tensors of these shapes cannot change a weight of `shape`, or ""."""
    if problem := named(algorithm).fits(shapes, shape):
        return problem
    return dora.fits(shapes["magnitude"], shape) if "magnitude" in shapes else ""


def factors(algorithm: str, tensors: Tensors, shape: tuple[int, ...]) -> tuple[torch.Tensor, torch.Tensor] | None:
    """ΔW as exact `up (out, k)` and `down (k, in·kh·kw)`, or None where it has none that are thinner than itself."""
    return None if "magnitude" in tensors else named(algorithm).factors(tensors, shape)


def dense(algorithm: str, tensors: Tensors, shape: tuple[int, ...], base: torch.Tensor | None = None) -> torch.Tensor:
    """The dense ΔW of any update, DoRA norms included, at least float32.

    Raises:
        ValueError: it depends on W, and `base` is not given.
    """
    change = named(algorithm).delta(tensors, shape, base)
    if "magnitude" not in tensors:
        return change
    if base is None:
        raise ValueError("DoRA normalises the base's weight, which is not given")
    return dora.delta(tensors["magnitude"], change, base)


def named(name: str) -> Algorithm:
    """The algorithm of that name.

    Raises:
        KeyError: no algorithm is called so.
    """
    return {algorithm.NAME: algorithm for algorithm in ALL}[name]
