"""Norms and singular values of updates, for reports."""

from __future__ import annotations

import math

from deltaw import adapters
from deltaw.adapters import lowrank
from deltaw.delta import Update


def of_update(update: Update, shape: tuple[int, ...]) -> list[float] | None:
    """The singular values of an update's ΔW, falling; None where it depends on W or changes no matrix."""
    import torch

    if adapters.needs_base(update.algorithm, update.tensors) or len(shape) < 2:
        return None
    factors = adapters.factors(update.algorithm, update.tensors, shape)
    if factors is not None:
        return lowrank.singular_values(*factors).tolist()
    dense = adapters.dense(update.algorithm, update.tensors, shape).flatten(1)
    return torch.linalg.svdvals(dense).tolist()


def summary(values: list[float]) -> tuple[float, float]:
    """Frobenius norm, and effective rank: exp of the entropy of the shares of energy (Roy & Vetterli 2007)."""
    energies = [value * value for value in values]
    whole = math.fsum(energies)
    if not whole:
        return 0.0, 0.0
    shares = [energy / whole for energy in energies if energy > 0]
    return math.sqrt(whole), math.exp(-math.fsum(share * math.log(share) for share in shares))
