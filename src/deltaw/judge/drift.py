"""How far predictions moved from the base's."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Drift:
    """‖prediction - the base's‖ / ‖the base's‖, the mean over questions.

    Args:
        plain: for prompts without the words that call the change up; what it does uncalled.
        called: for prompts with them.
    """

    plain: float
    called: float


def relative(predictions: Tensor, of_base: Tensor) -> float:
    """The mean over (m, c, h, w) predictions of how far each moved, relative to the base's."""
    moved = (predictions - of_base).flatten(1).norm(dim=1)
    return float((moved / of_base.flatten(1).norm(dim=1)).mean())
