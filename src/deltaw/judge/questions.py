"""Fixed questions: the same pictures, noise and times for every snapshot, every file and the base."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
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

    def asked(self, predict: Predict, at_a_time: int, again: Again | None = None) -> Iterator[tuple[Tensor, Tensor]]:
        """Which questions are asked together, (p,), with their answers, (p, c, h, w) float32 on the CPU.

        Numbers beyond the group's own are the questions that are put again.
        """
        rows, texts = torch.arange(len(self.x)), [self.texts[i] for i in self.said.tolist()]
        if again is not None:
            rows, texts = torch.cat([rows, again.rows]), [*texts, *again.texts]
        for part in torch.arange(len(rows)).split(at_a_time):
            x, times = self.x[rows[part]], self.times[rows[part]]
            yield part, predict(x, times, torch.stack([texts[i] for i in part.tolist()])).float().cpu()

    def errors(self, part: Tensor, prediction: Tensor) -> Tensor:
        """Mean squared errors (p,) float64 of the answers to some questions."""
        return (prediction - self.target[part]).square().flatten(1).mean(1).double()


@dataclass(frozen=True)
class Again:
    """Some questions of the first group that are put a second time, under other texts.

    Args:
        rows: (m,), which.
        texts: m encoded texts (rows, width).
    """

    rows: Tensor
    texts: Sequence[Tensor]


@dataclass(frozen=True)
class Answers:
    """What a network says to all questions.

    Args:
        losses: (n, k) float64, the mean squared error of every answer, picture by question.
        called: (m, c, h, w), its answers to those that are put again, under their own texts.
        plain: (m, c, h, w), under the other ones.
    """

    losses: Tensor
    called: Tensor
    plain: Tensor


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
        found = self._unknown()
        for group in self.groups:
            for part, prediction in group.asked(predict, at_a_time):
                found[group.owner[part], group.number[part]] = group.errors(part, prediction)
        return found

    @torch.no_grad()
    def answers(self, predict: Predict, again: Again, at_a_time: int = BATCH) -> Answers:
        """All questions and those that are put again, in one pass: a few of them on their own would waste a batch.

        Args:
            predict: the network's answer to some questions.
            again: what is asked beside the questions.
            at_a_time: of them at most.
        """
        losses, called, plain = self._unknown(), {}, []
        kept = set(again.rows.tolist())
        for i, group in enumerate(self.groups):
            for part, prediction in group.asked(predict, at_a_time, None if i else again):
                own = part < len(group.x)
                mine, said = part[own], prediction[own]
                losses[group.owner[mine], group.number[mine]] = group.errors(mine, said)
                if i == 0:
                    called |= {row: answer for row, answer in zip(mine.tolist(), said, strict=True) if row in kept}
                    plain.append(prediction[~own])
        return Answers(losses, torch.stack([called[row] for row in again.rows.tolist()]), torch.cat(plain))

    def _unknown(self) -> Tensor:
        return torch.zeros(self.times.shape, dtype=torch.float64)


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
