"""Optimizers and the learning rate as a function of the step."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import nn


@dataclass(frozen=True)
class Rate:
    """Learning rate by optimizer step: a linear climb, then a fall to nothing (or none).

    Args:
        peak: the highest rate.
        n_steps: length of the run.
        warmup_steps: steps of the climb.
        schedule: "cosine", "linear" or "constant".
    """

    peak: float
    n_steps: int
    warmup_steps: int
    schedule: str

    def at(self, step: int) -> float:
        """The rate of optimizer step `step`, counted from 1."""
        if step <= self.warmup_steps:
            return self.peak * step / self.warmup_steps
        rest = (step - 1 - self.warmup_steps) / max(1, self.n_steps - self.warmup_steps)
        falls = {"cosine": 0.5 * (1 + math.cos(math.pi * rest)), "linear": 1 - rest, "constant": 1.0}
        return self.peak * falls[self.schedule]


def adamw(parameters: Iterable[nn.Parameter], lr: float, weight_decay: float) -> torch.optim.Optimizer:
    """AdamW (Loshchilov and Hutter 2017, arXiv 1711.05101), β = (0.9, 0.99).

    β₂ is 0.99 rather than 0.999: a LoRA trains for hundreds of steps, not for hundreds of thousands.
    """
    return torch.optim.AdamW(parameters, lr=lr, betas=(0.9, 0.99), weight_decay=weight_decay, fused=True)


ALL: dict[str, Callable[[Iterable[nn.Parameter], float, float], torch.optim.Optimizer]] = {"adamw": adamw}
"""Optimizers by the name that `--set optimizer=` takes."""


def clip(parameters: Iterable[nn.Parameter], max_norm: float) -> float:
    """Scales gradients down to `max_norm` (0: leaves them); returns the norm they had."""
    grads = [p.grad for p in parameters if p.grad is not None]
    norm = torch.nn.utils.get_total_norm(grads)
    if max_norm > 0:
        torch.nn.utils.clip_grads_with_norm_(parameters, max_norm, norm)
    return float(norm)
