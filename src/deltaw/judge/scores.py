"""Paired comparisons: how a snapshot or a file does against the base on the same questions."""

from __future__ import annotations

import math
from dataclasses import dataclass
from statistics import NormalDist

from torch import Tensor

Z95 = NormalDist().inv_cdf(0.975)
T95_FEW = (math.nan, 12.706, 4.303)
"""Student's t for 97.5 % at 0, 1 and 2 degrees of freedom, where the expansion below is too rough."""


@dataclass(frozen=True)
class Interval:
    """A mean with its 95 % interval; the ends are NaN where one picture has no spread to tell noise by."""

    mean: float
    low: float
    high: float


@dataclass(frozen=True)
class Score:
    """How a snapshot compares with the base on the questions.

    Args:
        step: optimizer steps done, or the number of a file.
        loss: mean over pictures, unweighted.
        change: relative to the base's loss, negative is better; over pictures.
        weighted: the same as the training objective weights the times.
        n_better: pictures with a lower loss than the base's, of `n`.
    """

    step: int
    loss: float
    change: Interval
    weighted: Interval
    n_better: int
    n: int


def t95(degrees: int) -> float:
    """Student's t for a 95 % interval (Abramowitz and Stegun 1964, 26.7.5; within 1 % from 3 degrees on)."""
    if degrees < len(T95_FEW):
        return T95_FEW[degrees]
    z, n = Z95, degrees
    return (
        z + (z**3 + z) / (4 * n) + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * n**2)
        + (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / (384 * n**3)
    )  # fmt: skip


def interval(difference: Tensor) -> Interval:
    """The mean of (n,) independent differences with its 95 % interval (Student 1908)."""
    n, mean = len(difference), float(difference.mean())
    reach = float(difference.std()) / math.sqrt(n) * t95(n - 1) if n > 1 else math.nan
    return Interval(mean, mean - reach, mean + reach)


def score(step: int, losses: Tensor, base: Tensor, weights: Tensor) -> Score:
    """Compares losses (n, k) with the base's on the same questions, weighted by (n, k) and not."""
    plain, of_base = losses.mean(1), base.mean(1)
    heavy, of_base_heavy = (losses * weights).mean(1), (base * weights).mean(1)
    return Score(
        step, float(losses.mean()), interval((plain - of_base) / of_base.mean()),
        interval((heavy - of_base_heavy) / of_base_heavy.mean()), int((plain < of_base).sum()), len(losses),
    )  # fmt: skip
