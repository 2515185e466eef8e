"""A loss that means something: the same pictures, noise and times for every snapshot and the base."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from deltaw.diffusion.objective import Objective, mix
from deltaw.diffusion.schedule import Schedule

N_TIMES = 8
"""Times a picture is measured at, one in each eighth of the schedule."""
BATCH = 16
Z95 = 1.96


@dataclass(frozen=True)
class Score:
    """How a snapshot compares with the base on the probe.

    Args:
        step: optimizer steps done.
        loss: mean over pictures, unweighted.
        change: relative to the base, negative is better; `low`, `high`: its 95 % interval over pictures.
        n_better: pictures with a lower loss than the base's, of `n`.
    """

    step: int
    loss: float
    change: float
    low: float
    high: float
    n_better: int
    n: int


@dataclass(frozen=True)
class Probe:
    """Fixed questions: noisy latents (m, c, h, w) of several shapes, times, texts, targets.

    Each group holds the questions of one bucket; `owner (m,)` says whose picture a question is.
    """

    groups: Sequence[tuple[Tensor, Tensor, Tensor, Tensor, Tensor]]
    n: int

    @torch.no_grad()
    def losses(self, predict: Callable[[Tensor, Tensor, Tensor], Tensor]) -> Tensor:
        """Per picture the mean squared error (n,), float64, of `predict(x, times, text)`."""
        total, count = torch.zeros(self.n, dtype=torch.float64), torch.zeros(self.n, dtype=torch.float64)
        for x, times, text, target, owner in self.groups:
            for part in torch.arange(len(x)).split(BATCH):
                prediction = predict(x[part], times[part], text[part]).float().cpu()
                error = (prediction - target[part]).square().flatten(1).mean(1).double()
                total.index_add_(0, owner[part], error)
                count.index_add_(0, owner[part], torch.ones(len(part), dtype=torch.float64))
        return total / count


def probe(
    latents: Sequence[Tensor], texts: Sequence[Tensor], objective: Objective, schedule: Schedule, seed: int
) -> Probe:
    """Makes the questions for some pictures.

    Args:
        latents: per picture (c, h, w).
        texts: per picture (n_tok, width).
        objective: of the base.
        schedule: of the base.
        seed: fixes noise and times.
    """
    generator = torch.Generator().manual_seed(seed)
    by_shape: dict[tuple[int, ...], list[tuple[Tensor, Tensor, Tensor, Tensor, Tensor]]] = {}
    for i, (latent, text) in enumerate(zip(latents, texts, strict=True)):
        within = torch.rand(N_TIMES, generator=generator)
        times = ((torch.arange(N_TIMES) + within) / N_TIMES * schedule.n_times).long().clamp(max=schedule.n_times - 1)
        e = torch.randn(N_TIMES, *latent.shape, generator=generator)
        a, s = schedule.at(times)
        entry = (
            mix(latent, e, a, s), times, text.expand(N_TIMES, -1, -1), objective.target(latent, e, a, s),
            torch.full((N_TIMES,), i),
        )  # fmt: skip
        by_shape.setdefault(tuple(latent.shape), []).append(entry)
    groups = []
    for entries in by_shape.values():
        x, times, text, target, owner = (torch.cat(column) for column in zip(*entries, strict=True))
        groups.append((x, times, text, target, owner))
    return Probe(groups, len(latents))


def score(step: int, losses: Tensor, base: Tensor) -> Score:
    """Compares losses per picture (n,) with the base's on the same questions: a paired difference."""
    n = len(losses)
    mean = base.mean()
    difference = (losses - base) / mean
    spread = float(difference.std()) / math.sqrt(n) * Z95 if n > 1 else math.nan
    change = float(difference.mean())
    return Score(step, float(losses.mean()), change, change - spread, change + spread, int((losses < base).sum()), n)


def recommend(losses: Sequence[tuple[int, Tensor]]) -> tuple[int, str]:
    """The earliest snapshot whose loss is within noise of the best one's, and why.

    Args:
        losses: (step, losses per picture (n,)) of every snapshot, on the same questions.
    """
    best_step, best = min(losses, key=lambda item: float(item[1].mean()))
    step = next(step for step, candidate in losses if _within_noise(candidate - best))
    if step == best_step:
        return step, "it has the lowest loss"
    return step, f"it is within noise of the lowest loss (step {best_step}) and was there earlier"


def _within_noise(difference: Tensor) -> bool:
    """The mean difference (n,) is at most its standard error; one picture has no spread to tell noise by."""
    noise = float(difference.std()) / math.sqrt(len(difference)) if len(difference) > 1 else 0.0
    return float(difference.mean()) <= noise
