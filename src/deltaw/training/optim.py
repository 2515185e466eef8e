"""Optimizers and the learning rate as a function of the step."""

from __future__ import annotations

import contextlib
import importlib.util
import io
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from deltaw.errors import UsageError


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


def prodigy(parameters: Iterable[nn.Parameter], lr: float, weight_decay: float) -> torch.optim.Optimizer:
    """Prodigy (Mishchenko and Defazio 2023, arXiv 2306.06101): AdamW that finds its rate by itself; `lr` is a factor of it.

    With what its authors recommend for diffusion models (bias correction, and a warm-up that leaves the estimate alone), and a first
    guess of 1e-5 instead of 1e-6: a LoRA's run of a hundred steps has no time for the way from there (`docs/performance.md`).
    """
    from prodigyopt import Prodigy

    chosen: dict[str, Any] = {"betas": (0.9, 0.99), "d0": 1e-5, "use_bias_correction": True, "safeguard_warmup": True}
    with contextlib.redirect_stdout(io.StringIO()):  # it prints that the decay is decoupled
        return Prodigy(parameters, lr=lr, **{**chosen, "weight_decay": weight_decay})


@dataclass(frozen=True)
class Kind:
    """An optimizer and what a plan has to know of it.

    Args:
        make: of parameters, the peak rate and the decoupled weight decay.
        n_states: numbers that it keeps for each trained one.
        lr: the peak rate where nothing else is said, and why; None where a base may recommend one.
        package: that has to be installed for it, with the extra that does so.
    """

    make: Callable[[Iterable[nn.Parameter], float, float], torch.optim.Optimizer]
    n_states: int = 2
    lr: tuple[float, str] | None = None
    package: str = ""

    def require(self) -> None:
        """Refuses an optimizer whose package is not there.

        Raises:
            UsageError: it is not.
        """
        if self.package and importlib.util.find_spec(self.package) is None:
            raise UsageError(f"this optimizer needs the package {self.package}", where="optimizer",
                             advice=f"install it: pip install {self.package}, or deltaw with its extra: deltaw[optim]")  # fmt: skip


ALL: dict[str, Kind] = {
    "adamw": Kind(adamw),
    "prodigy": Kind(prodigy, 4, (1.0, "a factor of the rate that Prodigy finds by itself"), "prodigyopt"),
}
"""Optimizers by the name that `--set optimizer=` takes."""


def found_rate(optimizer: torch.optim.Optimizer) -> float | None:
    """The rate that an optimizer found by itself, None of one that does not look for it."""
    return optimizer.param_groups[0].get("d")


def found_numbers(optimizer: torch.optim.Optimizer) -> dict[str, float]:
    """What an optimizer keeps for all numbers together and has changed since its beginning, the rate of a step left out."""
    usual: dict[str, Any] = optimizer.defaults
    group = optimizer.param_groups[0]
    return {k: v for k, v in group.items() if k != "lr" and type(v) in (int, float) and v != usual.get(k)}


def clip(parameters: Iterable[nn.Parameter], max_norm: float) -> float:
    """Scales gradients down to `max_norm` (0: leaves them); returns the norm they had."""
    grads = [p.grad for p in parameters if p.grad is not None]
    norm = torch.nn.utils.get_total_norm(grads)
    if max_norm > 0:
        torch.nn.utils.clip_grads_with_norm_(parameters, max_norm, norm)
    return float(norm)
