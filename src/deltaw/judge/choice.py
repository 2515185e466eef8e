"""Which snapshot to use."""

from __future__ import annotations

import math
from collections.abc import Sequence

from torch import Tensor


def recommend(losses: Sequence[tuple[int, Tensor]]) -> tuple[int, str]:
    """The earliest snapshot whose loss is within noise of the best one's, and why.

    Args:
        losses: (step, losses (n, k) by picture and question) of every snapshot, on the same questions.
    """
    best_step, best = min(losses, key=lambda item: float(item[1].mean()))
    step = next(step for step, candidate in losses if _within_noise((candidate - best).mean(1)))
    if step == best_step:
        return step, "it has the lowest loss"
    return step, f"it is within noise of the lowest loss (step {best_step}) and was there earlier"


def _within_noise(difference: Tensor) -> bool:
    """The mean difference (n,) is at most its standard error; one picture has no spread to tell noise by."""
    noise = float(difference.std()) / math.sqrt(len(difference)) if len(difference) > 1 else 0.0
    return float(difference.mean()) <= noise
