"""Noise schedules as tables, and the densities that training draws times from."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Schedule:
    """Signal `a (T,)` and noise `s (T,)` for the T times that a base was trained at, in float32."""

    a: Tensor
    s: Tensor

    @property
    def n_times(self) -> int:
        """T."""
        return len(self.a)

    def at(self, times: Tensor) -> tuple[Tensor, Tensor]:
        """(a, s), each (n, 1, 1, 1), at integer times (n,)."""
        return self.a[times].view(-1, 1, 1, 1), self.s[times].view(-1, 1, 1, 1)

    def snr(self, times: Tensor) -> Tensor:
        """Signal-to-noise ratio a²/s² as (n,)."""
        return (self.a[times] / self.s[times]) ** 2


def from_alphas_cumprod(alphas_cumprod: Tensor) -> Schedule:
    """The variance-preserving table of ᾱ (T,): a = √ᾱ, s = √(1 - ᾱ)."""
    kept = alphas_cumprod.double()
    return Schedule(kept.sqrt().float(), (1 - kept).sqrt().float())


def flow(shift: float, n_times: int = 1000) -> Schedule:
    """The table of a rectified flow: noise s = shift·t / (1 + (shift - 1)·t) at t = 1/T, 2/T, …, 1, and signal a = 1 - s.

    A time drawn evenly from the table is one of Esser et al. 2024 (arXiv 2403.03206, equation 23), so that training sees the
    noise that drawing goes through.

    Args:
        shift: above 1 there is more noise.
        n_times: T.
    """
    t = torch.arange(1, n_times + 1, dtype=torch.float64) / n_times
    s = shift * t / (1 + (shift - 1) * t)
    return Schedule((1 - s).float(), s.float())


def stratified(n: int, generator: torch.Generator) -> Tensor:
    """n numbers in [0, 1), one in each of n equal parts, shuffled.

    Each is uniform by itself; together they cover the interval, which takes variance out of the
    loss of a batch (Kingma et al. 2021, arXiv 2107.00630, appendix I.1).
    """
    within = torch.rand(n, generator=generator, dtype=torch.float64)
    parts = torch.randperm(n, generator=generator)
    return ((parts + within) / n).float().clamp(max=1 - 2**-24)
