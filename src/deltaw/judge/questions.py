"""Fixed questions: the same pictures, noise and times for every snapshot, every file and the base."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from deltaw.diffusion.objective import Objective, mix
from deltaw.diffusion.schedule import Schedule

BATCH = 16
"""Questions that are asked at a time, where memory suffices."""
LEAST_TIMES = 8
"""Times a picture is measured at, at least: one in each eighth of the schedule."""

Predict = Callable[[Tensor, Tensor, Tensor], Tensor]
"""(x (n, c, h, w), times (n,), text (n, n_tok, width)) -> what the network says, (n, c, h, w)."""


@dataclass(frozen=True)
class Group:
    """The questions of one latent shape: `x (m, c, h, w)`, `times (m,)`, `target` as x.

    `texts` holds an encoded text (rows, width) a picture: FLUX.1's take 8 MB each, and a picture has many questions; `said (m,)`
    says which is a question's. `owner (m,)` says whose picture a question is, `number (m,)` which of that picture's questions.
    """

    x: Tensor
    times: Tensor
    target: Tensor
    said: Tensor
    owner: Tensor
    number: Tensor
    texts: Sequence[Tensor]

    def text(self, part: Tensor) -> Tensor:
        """The encoded texts (n, rows, width) of some questions."""
        return torch.stack([self.texts[i] for i in self.said[part].tolist()])


@dataclass(frozen=True)
class Questions:
    """Noisy latents with their answers.

    Args:
        groups: by latent shape.
        times: (n, k), the times of picture i's questions.
    """

    groups: Sequence[Group]
    times: Tensor

    @torch.no_grad()
    def losses(self, predict: Predict, at_a_time: int = BATCH) -> Tensor:
        """Mean squared error of every answer, (n, k) float64: picture by question.

        Args:
            predict: the network's answer to some questions.
            at_a_time: of them at most.
        """
        found = torch.zeros(self.times.shape, dtype=torch.float64)
        for group in self.groups:
            for part in torch.arange(len(group.x)).split(at_a_time):
                prediction = predict(group.x[part], group.times[part], group.text(part)).float().cpu()
                error = (prediction - group.target[part]).square().flatten(1).mean(1)
                found[group.owner[part], group.number[part]] = error.double()
        return found


def about(
    latents: Sequence[Tensor], texts: Sequence[Tensor], objective: Objective, schedule: Schedule, seed: int,
    n_times: int = LEAST_TIMES,
) -> Questions:  # fmt: skip
    """Makes the questions about some pictures: times stratified over the schedule, noise of their own.

    Args:
        latents: per picture (c, h, w).
        texts: per picture (n_tok, width).
        objective: of the base.
        schedule: of the base.
        seed: fixes noise and times.
        n_times: questions k a picture.
    """
    generator = torch.Generator().manual_seed(seed)
    by_shape: dict[tuple[int, ...], list[tuple[Tensor, ...]]] = {}
    texts_of: dict[tuple[int, ...], list[Tensor]] = {}
    every = []
    for i, (latent, text) in enumerate(zip(latents, texts, strict=True)):
        within = torch.rand(n_times, generator=generator)
        times = ((torch.arange(n_times) + within) / n_times * schedule.n_times).long().clamp(max=schedule.n_times - 1)
        e = torch.randn(n_times, *latent.shape, generator=generator)
        a, s = schedule.at(times)
        shape = tuple(latent.shape)
        known = texts_of.setdefault(shape, [])
        entry = (
            mix(latent, e, a, s), times, objective.target(latent, e, a, s), torch.full((n_times,), len(known)),
            torch.full((n_times,), i), torch.arange(n_times),
        )  # fmt: skip
        known.append(text)
        every.append(times)
        by_shape.setdefault(shape, []).append(entry)
    groups = [
        Group(*(torch.cat(column) for column in zip(*entries, strict=True)), texts=texts_of[shape])
        for shape, entries in by_shape.items()
    ]
    return Questions(groups, torch.stack(every))


def moved(latent: Tensor) -> Tensor:
    """A (c, h, w) latent moved down and right by a sixteenth of its sides, its edge repeated: a view never trained on.

    What was learnt of a style holds for it, what was learnt by heart of a picture does not, so its loss turns where
    that of pictures kept out of training turns (`python -m benchmarks.recommendation`).
    """
    h, w = latent.shape[1:]
    down, right = max(1, round(h / 16)), max(1, round(w / 16))
    return functional.pad(latent[None], (right, 0, down, 0), mode="replicate")[0, :, :h, :w]


def weights(questions: Questions, objective: Objective, schedule: Schedule, gamma: float) -> Tensor:
    """The training objective's weight of every question, (n, k) float64: min-SNR's, or 1 where gamma is 0."""
    if gamma <= 0:
        return torch.ones(questions.times.shape, dtype=torch.float64)
    return objective.min_snr(schedule.snr(questions.times.flatten()), gamma).double().view(questions.times.shape)
