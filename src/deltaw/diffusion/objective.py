"""Training objectives: what the network is asked to predict, in one place for training and checks.

A noisy sample is x = a·x0 + s·e with signal a and noise s for its time t. All functions take
tensors that broadcast against each other; `a` and `s` are (n, 1, 1, 1) beside (n, c, h, w) latents.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor


def mix(x0: Tensor, e: Tensor, a: Tensor, s: Tensor) -> Tensor:
    """The noisy sample x = a·x0 + s·e (Ho et al. 2020, arXiv 2006.11239, equation 4)."""
    return a * x0 + s * e


@dataclass(frozen=True)
class Objective:
    """What is predicted.

    Args:
        name: diffusers' `prediction_type`.
        target: (x0, e, a, s) -> what the network should say.
        to_x0: (prediction, x, a, s) -> the clean sample that it implies.
        min_snr: (snr, gamma) -> min-SNR loss weight (Hang et al. 2023, arXiv 2303.09556).
    """

    name: str
    target: Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]
    to_x0: Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]
    min_snr: Callable[[Tensor, float], Tensor]


def _capped(snr: Tensor, gamma: float) -> Tensor:
    return snr.clamp(max=gamma)


EPS = Objective(
    "epsilon",
    target=lambda x0, e, a, s: e,  # noqa: ARG005
    to_x0=lambda pred, x, a, s: (x - s * pred) / a,
    min_snr=lambda snr, gamma: _capped(snr, gamma) / snr,
)
"""The noise itself (Ho et al. 2020)."""

V = Objective(
    "v_prediction",
    target=lambda x0, e, a, s: a * e - s * x0,
    to_x0=lambda pred, x, a, s: a * x - s * pred,
    min_snr=lambda snr, gamma: _capped(snr, gamma) / (snr + 1),
)
"""v = a·e - s·x0 with a² + s² = 1 (Salimans and Ho 2022, arXiv 2202.00512, appendix D)."""

FLOW = Objective(
    "flow_prediction",
    target=lambda x0, e, a, s: e - x0,  # noqa: ARG005
    to_x0=lambda pred, x, a, s: x - s * pred,  # noqa: ARG005
    min_snr=lambda snr, gamma: torch.ones_like(snr),  # noqa: ARG005
)
"""The velocity of x = (1 - t)·x0 + t·e, so a = 1 - t and s = t (Lipman et al. 2022, arXiv 2210.02747)."""

ALL = (EPS, V, FLOW)


def named(name: str) -> Objective:
    """The objective with that `prediction_type`.

    Raises:
        KeyError: none is called so.
    """
    return {objective.name: objective for objective in ALL}[name]
