"""Proof by random probes: two changes of a weight do the same to random inputs."""

from __future__ import annotations

from typing import TYPE_CHECKING

from deltaw import adapters
from deltaw.algebra.combine import Sum
from deltaw.delta import Update

if TYPE_CHECKING:
    import torch


def difference(update: Update | None, wanted: Sum, x: torch.Tensor) -> tuple[float, float]:
    """‖(ΔW − wanted)·x‖ and ‖wanted·x‖ for probes `x (in·kh·kw, n)`; E‖M·x‖² = n·‖M‖², so both are norms up to √n."""
    got = _apply(_factored(update, wanted.shape), x, wanted.shape[0])
    aim = _apply(wanted.factors if wanted.factors is not None else wanted.dense, x, wanted.shape[0])
    return float((got - aim).norm()), float(aim.norm())


def rounding(update: Update | None, wanted: Sum, x: torch.Tensor) -> float:
    """How far `difference` may be off by the rounding of the written type and of float32 arithmetic alone.

    Measured on ‖up‖·‖down‖ instead of ‖up·down‖, since terms that cancel leave the rounding of what they were.
    """
    import torch

    if wanted.factors is not None:
        size = float(wanted.factors[0].norm()) * float(wanted.factors[1].norm())
    else:
        size = float(wanted.dense.norm()) if wanted.dense is not None else 0.0
    kinds = [torch.finfo(t.dtype).eps for n, t in update.tensors.items() if n != "alpha"] if update is not None else []
    return 8 * max([torch.finfo(torch.float32).eps, *kinds]) * size * x.shape[1] ** 0.5 + 1e-30


def probes(n_in: int, generator: torch.Generator, n: int = 8) -> torch.Tensor:
    """Random inputs `(n_in, n)` in float64."""
    import torch

    return torch.randn(n_in, n, generator=generator, dtype=torch.float64)


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
    return change.double().reshape(n_out, -1) @ x
