"""Means of snapshots: of their ΔW, not of their factors, since the mean of products is not the product of means."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch

from deltaw.adapters import lora, lowrank
from deltaw.delta import Delta, Update
from deltaw.inject import Wrapped


def mean(deltas: Sequence[Delta], rank: int) -> tuple[Delta, float]:
    """The best approximation of rank r of the mean ΔW of some LoRAs, and its relative error.

    The mean itself is exact: factors side by side, [up₁ … upₖ]/k · [down₁; …; downₖ]. It is cut to the rank by the
    optimum of Eckart and Young (1936). Averaging weights along a run does much of what a fall of the rate does
    (Izmailov et al. 2018, arXiv 1803.05407).

    Args:
        deltas: of the same modules.
        rank: of the result.
    """
    updates, lost, whole = {}, 0.0, 0.0
    for path, first in deltas[0].updates.items():
        parts = [delta.updates[path].tensors for delta in deltas]
        up, down = lowrank.stacked([(lora.scale(t) / len(parts), *_matrices(t)) for t in parts])
        spectrum = lowrank.of_factors(up, down, rank)
        lost, whole = lost + spectrum.error(rank) ** 2, whole + spectrum.energy
        small_up, small_down = spectrum.cut(rank)
        tensors = {
            "up": small_up.reshape(first.tensors["up"].shape),
            "down": small_down.reshape(first.tensors["down"].shape),
        }
        updates[path] = Update("lora", tensors)
    return Delta(deltas[0].family, updates), math.sqrt(lost / whole) if whole else 0.0


def _matrices(tensors: Mapping[str, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
    return tensors["up"].float().flatten(1), tensors["down"].float().flatten(1)


def take_up(wrapped: Wrapped, delta: Delta, component: str) -> None:
    """Puts a LoRA of the adapters' own ranks into them, whatever its alpha."""
    with torch.no_grad():
        for path, module in wrapped.modules.items():
            tensors = delta.updates[f"{component}.{path}"].tensors
            module.up.copy_(tensors["up"].float() * (lora.scale(tensors) / module.scale))
            module.down.copy_(tensors["down"].float())
