"""The training loop, one page: draw times and noise, predict, compare, step, and now and then look."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from deltaw import device as devices
from deltaw.data.feed import Feed
from deltaw.diffusion.objective import mix
from deltaw.diffusion.schedule import stratified
from deltaw.errors import DeltawError
from deltaw.events import Step, Tell, Warn
from deltaw.families.base import Base
from deltaw.inject import Wrapped
from deltaw.training import optim
from deltaw.training.plan import Plan

PARTS = 16
"""Equal parts of the noise schedule that are gone through before one comes again."""
MAX_BAD_IN_A_ROW = 5
"""Non-finite steps that are skipped before the run stops: one is an accident, five are a cause."""


class NotFiniteError(DeltawError):
    """Several steps in a row had no finite loss or gradient. Nothing was learnt from them: the adapter is still sound.

    Args:
        step: the last of them.
        pictures: that it saw.
        n_steps: in a row.
    """

    def __init__(self, step: int, pictures: list[int], n_steps: int):
        self.step, self.pictures, self.n_steps = step, pictures, n_steps
        super().__init__(f"{n_steps} steps in a row had no finite loss or gradient", where=f"step {step}")


@dataclass
class Run:
    """What the loop changes: the step it has reached, the losses, the optimizer, its seconds, the steps it skipped.

    `ended` is set at a mark where further steps have stopped paying.
    """

    step: int
    losses: list[float]
    optimizer: torch.optim.Optimizer
    seconds: float = 0.0
    n_skipped: int = 0
    ended: bool = False


@dataclass(frozen=True)
class Work:
    """What the loop only reads."""

    base: Base
    network: nn.Module
    wrapped: Wrapped
    feed: Feed
    plan: Plan
    device: torch.device
    dtype: torch.dtype


def seeded(seed: int, purpose: str, step: int) -> torch.Generator:
    """A CPU generator for one purpose of one step: the same on every device and after every resume."""
    digest = hashlib.sha256(f"{seed}/{purpose}/{step}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "little") >> 1)


def train(work: Work, run: Run, at_mark: Callable[[Run], None], stop_asked: Callable[[], bool], tell: Tell) -> None:
    """Takes the optimizer steps from `run.step` to the plan's last.

    Args:
        work: networks, data and plan.
        run: changed in place.
        at_mark: called after every step in `plan.marks`, with the adapter as it stands.
        stop_asked: polled after each step; True ends the loop early.
        tell: hears every step.

    Raises:
        NotFiniteError: loss or gradient were not finite several times in a row.
    """
    settings, parameters = work.plan.settings, list(work.wrapped.parameters().values())
    rate = optim.Rate(settings.lr, settings.steps, settings.warmup_steps, settings.schedule)
    turns = work.plan.sampler.plan(settings.steps)
    bad, first = 0, run.step
    while run.step < settings.steps and not run.ended and not stop_asked():
        step, started = run.step + 1, time.perf_counter()
        pictures = work.plan.sampler.pictures(*turns[step - 1])
        loss = objective_loss(work, pictures, step)
        loss.backward()
        norm = optim.clip(parameters, settings.clip)
        value = float(loss.detach())
        bad = bad + 1 if not (_finite(value) and _finite(norm)) else 0
        if bad:
            tell(Warn(f"step {step}: loss {value}, gradient norm {norm}; the step is skipped"))
        else:
            for group in run.optimizer.param_groups:
                group["lr"] = rate.at(step)
            run.optimizer.step()
        run.optimizer.zero_grad(set_to_none=True)
        run.step = step
        run.losses.append(value)
        run.n_skipped += bool(bad)
        run.seconds += time.perf_counter() - started
        speed = (step - first) / run.seconds
        tell(Step(step, settings.steps, value, rate.at(step), speed, devices.rss_bytes(), {"grad_norm": norm}))
        if bad >= MAX_BAD_IN_A_ROW or (bad == step and step in work.plan.marks):  # or nothing was ever learnt
            raise NotFiniteError(step, pictures, bad)
        if step in work.plan.marks:
            at_mark(run)


def objective_loss(work: Work, pictures: list[int], step: int) -> Tensor:
    """The weighted objective on one batch, as a scalar with a graph; the same for the same step, always."""
    base, settings, feed = work.base, work.plan.settings, work.feed
    generator = seeded(settings.seed, "noise", step)
    x0 = torch.stack([feed.latents[i] for i in pictures])
    times = (spread(len(pictures), step, settings.seed, generator) * base.schedule.n_times).long()
    e = torch.randn(x0.shape, generator=generator)
    dropped = torch.rand(len(pictures), generator=generator) < settings.caption_dropout
    texts = ["" if drop else feed.captions[i] for i, drop in zip(pictures, dropped.tolist(), strict=True)]
    text = torch.stack([feed.texts[t] for t in texts])
    a, s = base.schedule.at(times)
    x, target = mix(x0, e, a, s), base.objective.target(x0, e, a, s)
    prediction = predict(work, x, times, text)
    error = (prediction.float() - target.to(work.device)).square().flatten(1).mean(1)
    if settings.min_snr_gamma > 0:
        error = error * base.objective.min_snr(base.schedule.snr(times), settings.min_snr_gamma).to(work.device)
    return error.mean()


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


def predict(work: Work, x: Tensor, times: Tensor, text: Tensor) -> Tensor:
    """The network's answer to CPU tensors, on its own device and in its own precision."""
    device, dtype = work.device, work.dtype
    return work.base.denoise(work.network, x.to(device, dtype), times.to(device), text.to(device, dtype))


def _finite(value: float) -> bool:
    return value - value == 0.0  # NaN and infinities differ from themselves when subtracted
