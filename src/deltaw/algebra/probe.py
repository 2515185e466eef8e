"""Proof by random probes: two changes of a weight do the same to random inputs."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from deltaw import adapters
from deltaw.algebra.combine import Sum
from deltaw.delta import Update

if TYPE_CHECKING:
    import torch


class Probes:
    """Random inputs, `n` for each weight: slices of one table, so that they need not be kept or drawn again."""

    n = 8
    n_starts = 4093

    def __init__(self, generator: torch.Generator):
        import torch

        self._generator = generator
        self._x = torch.zeros(0, self.n, dtype=torch.float64)

    def of(self, n_in: int, which: int) -> torch.Tensor:
        """The probes `(n_in, n)` of weight number `which`, in float64."""
        import torch

        begin = 331 * which % self.n_starts
        missing = begin + n_in - self._x.shape[0]
        if missing > 0:
            more = torch.randn(max(8192, missing), self.n, generator=self._generator, dtype=torch.float64)
            self._x = torch.cat([self._x, more])
        return self._x[begin : begin + n_in]


@dataclass(frozen=True)
class Proof:
    """What a change has to do to the probes.

    Args:
        which: number of the weight.
        shape: of it.
        aim: ΔW·x in float32, `(out, n)`; None for no change.
        norm: ‖ΔW·x‖; E‖M·x‖² = n·‖M‖², so it is ‖ΔW‖ up to √n.
        size: ‖up‖·‖down‖, which rounding is measured on: terms that cancel leave the rounding of what they were.
    """

    which: int
    shape: tuple[int, ...]
    aim: torch.Tensor | None
    norm: float
    size: float

    @classmethod
    def of(cls, which: int, wanted: Sum, probes: Probes) -> Proof:
        """The proof of a sum that is weight number `which`."""
        x = probes.of(math.prod(wanted.shape[1:]), which)
        if wanted.product is not None:
            aim, size = _apply((wanted.product.up, wanted.product.down), x, wanted.shape[0]), wanted.product.size
        elif wanted.dense is not None:
            aim, size = _apply(wanted.dense, x, wanted.shape[0]), float(wanted.dense.norm())
        else:
            return cls(which, wanted.shape, None, 0.0, 0.0)
        return cls(which, wanted.shape, aim.float(), float(aim.norm()), size)

    def compare(self, update: Update | None, probes: Probes) -> tuple[float, float]:
        """‖(ΔW − wanted)·x‖, and how far rounding to the written type and float32 arithmetic alone may take it."""
        import torch

        x = probes.of(math.prod(self.shape[1:]), self.which)
        got = _apply(_factored(update, self.shape), x, self.shape[0])
        off = float((got if self.aim is None else got - self.aim).norm())
        kinds = [torch.finfo(t.dtype).eps for n, t in update.tensors.items() if n != "alpha"] if update else []
        return off, 8 * max([torch.finfo(torch.float32).eps, *kinds]) * self.size * x.shape[1] ** 0.5 + 1e-30


def _factored(update: Update | None, shape: tuple[int, ...]) -> tuple[torch.Tensor, torch.Tensor] | torch.Tensor | None:
    if update is None or (update.algorithm == "full" and "diff" not in update.tensors):
        return None
    thin = adapters.factors(update.algorithm, update.tensors, shape) if len(shape) > 1 else None
    return thin if thin is not None else adapters.dense(update.algorithm, update.tensors, shape)


def _apply(
    change: tuple[torch.Tensor, torch.Tensor] | torch.Tensor | None, x: torch.Tensor, n_out: int
) -> torch.Tensor:
    if change is None:
        return x.new_zeros((n_out, x.shape[1]))
    if isinstance(change, tuple):
        return change[0].double() @ (change[1].double() @ x)
    import torch

    rows = change.reshape(n_out, -1).split(256)  # so that no float64 copy of the whole is made
    return torch.cat([block.double() @ x for block in rows])
