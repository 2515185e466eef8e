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


NARROWED = 0.6
"""Share of a run after which the largest time has fallen to where it stays."""


def largest_time(done: float, end: float) -> float:
    """The largest time that is drawn, as a share of the schedule, when a share `done` of a run is over.

    It falls from 1 to `end` along a line, and stays there. Much noise hides all but the composition, which few pictures
    teach quickly and then by heart; little noise shows lines and shading, which go on being learnt
    (`python -m benchmarks.quality --set max_time_end=1` beside the default; found by trying, no paper).
    """
    return 1 - (1 - end) * min(1.0, done / NARROWED)


def stratified(n: int, generator: torch.Generator) -> Tensor:
    """n numbers in [0, 1), one in each of n equal parts, shuffled.

    Each is uniform by itself; together they cover the interval, which takes variance out of the
    loss of a batch (Kingma et al. 2021, arXiv 2107.00630, appendix I.1).
    """
    within = torch.rand(n, generator=generator, dtype=torch.float64)
    parts = torch.randperm(n, generator=generator)
    return ((parts + within) / n).float().clamp(max=1 - 2**-24)
