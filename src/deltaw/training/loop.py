"""The training loop, one page: a batch, its gradients, an optimizer step, and now and then a look."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from deltaw import device as devices
from deltaw.errors import DeltawError
from deltaw.events import Step, Tell, Warn
from deltaw.training import optim, stepping
from deltaw.training.replay import Steps
from deltaw.training.stepping import Batch, Work

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
    settings, trained, compute = work.plan.settings, [work.flat.values], Steps(work, tell)
    rate = optim.Rate(settings.lr, settings.steps, settings.warmup_steps, settings.schedule)
    turns = work.plan.sampler.plan(settings.steps)
    bad, first = 0, run.step
    following = _prepared(work, turns, run.step + 1)
    with devices.kept():
        while following is not None and not run.ended and not stop_asked():
            step, started = run.step + 1, time.perf_counter()
            pictures, batch = following
            loss = compute(batch)
            following = _prepared(work, turns, step + 1)  # while a GPU computes, or other processes do
            loss = compute.gathered(loss)
            norm = optim.clip(trained, settings.clip)
            value = float(loss)
            bad = bad + 1 if not (_finite(value) and _finite(norm)) else 0
            if bad:
                tell(Warn(f"step {step}: loss {value}, gradient norm {norm}; the step is skipped"))
            else:
                for group in run.optimizer.param_groups:
                    group["lr"] = rate.at(step)
                run.optimizer.step()
            run.step = step
            run.losses.append(value)
            run.n_skipped += bool(bad)
            run.seconds += time.perf_counter() - started
            speed = (step - first) / run.seconds
            taken = rate.at(step) * (optim.found_rate(run.optimizer) or 1.0)
            tell(Step(step, settings.steps, value, taken, speed, devices.rss_bytes(), {"grad_norm": norm}))
            if bad >= MAX_BAD_IN_A_ROW or (bad == step and step in work.plan.marks):  # or nothing was ever learnt
                raise NotFiniteError(step, pictures, bad)
            if step in work.plan.marks:
                compute.make_room()
                at_mark(run)


def _prepared(work: Work, turns: Sequence[tuple[tuple[int, int], int]], step: int) -> tuple[list[int], Batch] | None:
    """A step's pictures and batch; None beyond the last step."""
    if step > work.plan.settings.steps:
        return None
    pictures = work.plan.sampler.pictures(*turns[step - 1])
    return pictures, stepping.batch(work, pictures, step)


def _finite(value: float) -> bool:
    return value - value == 0.0  # NaN and infinities differ from themselves when subtracted
