"""Which snapshot to use, whether more steps would pay, and when they have stopped paying."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor

PRICE = 0.001
"""The share of the loss that an earlier snapshot may cost, however large the noise is."""
WORTH = 0.1
"""The share of what was gained so far that half as many steps again must add to be worth it."""
WORTH_LEAST = 0.002
"""The share of the loss that they must bring in any case."""
PATIENCE = 2
"""Marks without a new best that are waited for before a run stops."""


@dataclass(frozen=True)
class Candidate:
    """Something that could be the result.

    Args:
        step: optimizer steps it took.
        losses: (n, k), picture by question, on the same questions as every other.
        n_averaged: snapshots it is the mean of, ending with `step`; 1 is the snapshot itself.
    """

    step: int
    losses: Tensor
    n_averaged: int = 1

    @property
    def loss(self) -> float:
        """Mean over pictures and questions."""
        return float(self.losses.mean())

    @property
    def name(self) -> str:
        """As a person reads it."""
        return f"step {self.step}" if self.n_averaged == 1 else f"the mean of {self.n_averaged} up to step {self.step}"


@dataclass(frozen=True)
class Choice:
    """What to use and why.

    Args:
        best: the candidate that is recommended.
        reason: why, as a sentence goes on after a colon.
        further: what half as many steps again would change of the loss, relative; None where it is not worth it.
        is_asked_for: the user asked for this one, whatever its loss.
    """

    best: Candidate
    reason: str
    further: float | None
    is_asked_for: bool = False


def choose(snapshots: Sequence[Candidate], averages: Sequence[Candidate] = (), further: float | None = None) -> Choice:
    """The earliest snapshot within noise of the best one; a mean of several only where it is better beyond noise.

    "Within noise" is a standard error, as in Breiman et al. 1984 (the one-standard-error rule), and never more than
    `PRICE`: few pictures make much noise, which must not buy a snapshot that is worse.

    Args:
        snapshots: in the order of their steps.
        averages: means of them.
        further: what `outlook` says.
    """
    sound = [c for c in snapshots if math.isfinite(c.loss)]
    if not sound:
        return Choice(snapshots[-1], "no snapshot has a finite loss", None)
    lowest = min(sound, key=lambda c: c.loss)
    early = next(c for c in sound if _as_good(c, lowest))
    means = [c for c in averages if better(c, lowest)]
    if means:
        best = min(means, key=lambda c: c.loss)
        return Choice(
            best, f"it is better than every snapshot beyond noise ({best.loss / lowest.loss - 1:+.1%})", further
        )
    if early is lowest:
        return Choice(early, "it has the lowest loss", further)
    return Choice(early, f"it is within noise of the lowest loss (step {lowest.step}) and was there earlier", further)


def choose_last(snapshots: Sequence[Candidate]) -> Choice:
    """The last snapshot, because it was asked for; the reason says what that costs.

    Args:
        snapshots: in the order of their steps.
    """
    last = snapshots[-1]
    lowest = min(snapshots, key=lambda c: c.loss if math.isfinite(c.loss) else math.inf)
    cost = f"its loss is {last.loss / lowest.loss - 1:.1%} above step {lowest.step}'s"
    costs = "has the lowest loss too" if lowest is last else cost
    return Choice(last, f"it is the last snapshot, as asked for, and {costs}", None, is_asked_for=True)


def outlook(base: Candidate, snapshots: Sequence[Candidate], learnt: Mapping[int, float]) -> float | None:
    """By how much half as many steps again would lower the loss, relative; None if by noise or by too little.

    A style that is far from the base takes a fifth off the loss, one that is near it a twentieth, and either may be half
    learnt; so what is worth it is told by the gain (`WORTH`), and by the loss only where it is next to nothing.

    A rate that falls to nothing makes every curve end flat, so progress is counted in learning rate spent, not in
    steps, and 1 - exp(-a·progress) is laid through the base, the mark near two thirds and the last one. A run that
    gained no less after that mark than before it goes on in a straight line.

    Args:
        base: before the first step.
        snapshots: in the order of their steps.
        learnt: step to the share of the run's learning rate that was spent by then, 1 at the last snapshot.
    """
    last = snapshots[-1]
    middle = min(snapshots[:-1], key=lambda c: abs(learnt[c.step] - 2 / 3), default=None)
    if middle is None or not better(last, middle):
        return None
    whole, part, at = base.loss - last.loss, base.loss - middle.loss, learnt[middle.step]
    if whole <= 0:
        return None
    a = _bend(part / whole, at)
    more = 0.5 if a < 1e-3 else math.exp(-a) * (1 - math.exp(-a / 2)) / (1 - math.exp(-a))
    change = -more * whole / last.loss
    return change if more >= WORTH and change <= -WORTH_LEAST else None


def _bend(share: float, at: float) -> float:
    """The a for which (1 - exp(-a·at)) / (1 - exp(-a)) is `share`; 0 where that is no more than a straight line's."""
    low, high = 0.0, 50.0
    for _ in range(60):
        a = (low + high) / 2
        low, high = (a, high) if math.expm1(-a * at) / math.expm1(-a) < share else (low, a)
    return low


def has_stopped_paying(snapshots: Sequence[Candidate]) -> bool:
    """Whether going on is a waste: the best lies `PATIENCE` marks back and the last is worse beyond noise.

    Without the latter one mark more is waited for.
    """
    if not snapshots:
        return False
    losses = [c.loss for c in snapshots]
    since = len(losses) - 1 - losses.index(min(losses))
    lowest = snapshots[len(losses) - 1 - since]
    return since > PATIENCE or (since == PATIENCE and better(lowest, snapshots[-1]))


def noise(difference: Tensor) -> float:
    """The standard error of the mean of paired differences (n, k): the larger of that over pictures and over questions.

    The questions about one picture are nearly independent of each other (their noise and times differ), so they tell
    the error of a few pictures better than the few means do, which by chance may lie close together.
    """
    parts = (difference.mean(1), difference.flatten())
    return max((float(p.std()) / math.sqrt(len(p)) for p in parts if len(p) > 1), default=0.0)


def _as_good(one: Candidate, lowest: Candidate) -> bool:
    return one.loss - lowest.loss <= min(noise(one.losses - lowest.losses), PRICE * lowest.loss)


def better(one: Candidate, other: Candidate) -> bool:
    """Beyond noise: by more than two standard errors."""
    return other.loss - one.loss > 2 * noise(one.losses - other.losses)
