"""What one training step computes: times and noise are drawn, the network predicts, the loss is its error; and its gradients."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor, nn

from deltaw.data.feed import Feed
from deltaw.diffusion.objective import mix
from deltaw.diffusion.schedule import stratified
from deltaw.families.base import Base
from deltaw.flat import Flat
from deltaw.inject import Wrapped
from deltaw.training.plan import Plan
from deltaw.training.team import Team

PARTS = 16
"""Equal parts of the noise schedule that are gone through before one comes again."""


@dataclass(frozen=True)
class Work:
    """What the loop only reads.

    Args:
        base: opened.
        network: its network, with `wrapped` adapters, whose numbers and gradients lie in `flat`.
        feed: the pictures.
        plan: every value.
        device: where the network is; `dtype`: that it computes in.
        team: other processes, which compute their share of every step and of the questions; None where there are none.
    """

    base: Base
    network: nn.Module
    wrapped: Wrapped
    flat: Flat
    feed: Feed
    plan: Plan
    device: torch.device
    dtype: torch.dtype
    team: Team | None = None


@dataclass(frozen=True)
class Batch:
    """What a step reads: `x` and `target` (n, c, h, w), `times (n,)`, `text (n, *Base.text_shape)`, `weights (n,)` of the errors."""

    x: Tensor
    times: Tensor
    text: Tensor
    target: Tensor
    weights: Tensor

    def tensors(self) -> tuple[Tensor, ...]:
        """All of them, in this order."""
        return tuple(getattr(self, f.name) for f in fields(self))

    def parts(self, n: int) -> list[Batch]:
        """`n` pictures each, a divisor of all, weighted so that their losses add up to the whole's; itself where there are no more."""
        if n >= len(self.x):
            return [self]
        weighted = replace(self, weights=self.weights * (n / len(self.x)))
        return [Batch(*part) for part in zip(*(_apart(t.split(n)) for t in weighted.tensors()), strict=True)]

    def on(self, device: torch.device, dtype: torch.dtype) -> Batch:
        """The same on a device; what the network reads in its precision, what its answer is compared with in float32."""
        rest = (t.to(device) for t in (self.target, self.weights))
        return Batch(self.x.to(device, dtype), self.times.to(device), self.text.to(device, dtype), *rest)


def seeded(seed: int, purpose: str, step: int) -> torch.Generator:
    """A CPU generator for one purpose of one step: the same on every device and after every resume."""
    digest = hashlib.sha256(f"{seed}/{purpose}/{step}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "little") >> 1)


def batch(work: Work, pictures: list[int], step: int) -> Batch:
    """What a step reads, on the CPU; the same for the same step, always."""
    base, settings, feed = work.base, work.plan.settings, work.feed
    generator = seeded(settings.seed, "noise", step)
    x0 = torch.stack([feed.latents[i] for i in pictures])
    times = (spread(len(pictures), step, settings.seed, generator) * base.schedule.n_times).long()
    e = torch.randn(x0.shape, generator=generator)
    dropped = torch.rand(len(pictures), generator=generator) < settings.caption_dropout
    texts = ["" if drop else feed.captions[i] for i, drop in zip(pictures, dropped.tolist(), strict=True)]
    a, s = base.schedule.at(times)
    weights = torch.ones(len(pictures))
    if settings.min_snr_gamma > 0:
        weights = base.objective.min_snr(base.schedule.snr(times), settings.min_snr_gamma)
    text = torch.stack([feed.texts[t] for t in texts])
    return Batch(mix(x0, e, a, s), times, text, base.objective.target(x0, e, a, s), weights)


def spread(n: int, step: int, seed: int, generator: torch.Generator) -> Tensor:
    """A step's n times in [0, 1): small batches go through `PARTS` equal parts together, each part once, in a random order.

    A batch of that many covers the parts by itself. What a single step draws is uniform all the same; over few steps the
    gradient's noise is less, as within a batch (`stratified`).

    Args:
        n: pictures in the step.
        step: its number, from 1.
        seed: of the run.
        generator: of the step, for a large batch.
    """
    if n >= PARTS:
        return stratified(n, generator)
    together = PARTS // n
    group, turn = divmod(step - 1, together)
    return stratified(together * n, seeded(seed, "times", group))[turn * n : (turn + 1) * n]


def answer(work: Work, x: Tensor, times: Tensor, text: Tensor) -> Tensor:
    """The network's answer to CPU tensors, on its own device and in its own precision."""
    device, dtype = work.device, work.dtype
    return work.base.denoise(work.network, x.to(device, dtype), times.to(device), text.to(device, dtype))


def answer_together(work: Work, x: Tensor, times: Tensor, text: Tensor) -> Tensor:
    """The same, of as many processes as there are: each answers to its share."""
    if work.team is None or len(x) < work.team.n:
        return answer(work, x, times, text)
    mine, *theirs = zip(*(_apart(t.tensor_split(work.team.n)) for t in (x, times, text)), strict=True)
    work.team.begin("answer", theirs, work.flat.values.detach())
    with work.team.cores():
        own = answer(work, *mine)
    return torch.cat([own, *(other.to(own) for other in work.team.replies())])


def _apart(parts: Sequence[Tensor]) -> list[Tensor]:
    """Parts of one tensor as tensors of their own: what is sent to another process takes all of its memory along."""
    return [part.clone() for part in parts]


def objective_loss(work: Work, there: Batch) -> Tensor:
    """The weighted objective on a batch that is on the device, as a scalar with a graph."""
    prediction = work.base.denoise(work.network, there.x, there.times, there.text)
    error = (prediction.float() - there.target).square().flatten(1).mean(1)
    return (error * there.weights).mean()


def gradients(work: Work, parts: Sequence[Batch], add: Callable[[Batch], Tensor]) -> Tensor:
    """The loss of a step's parts; their gradients, added up, are in `work.flat` then, in place of those before.

    Args:
        work: whose gradients are computed.
        parts: that are computed one after another (gradient accumulation).
        add: adds a part's gradients and gives its loss, `add_gradients` or what does the same.
    """
    work.flat.begin()
    losses = [add(part) for part in parts]
    return losses[0] if len(losses) == 1 else torch.stack(losses).sum()


def add_gradients(work: Work, part: Batch) -> Tensor:
    """The loss of a batch or of a part, sent to the device if it is not there; its gradients are added to those in `work.flat`."""
    loss = objective_loss(work, part.on(work.device, work.dtype))
    loss.backward()
    return loss.detach()
