"""Dense float64 references: ΔW of every module of a change, straight from the formulas."""

from __future__ import annotations

import torch

from deltaw import adapters, families
from deltaw.delta import Delta
from deltaw.formats import saving


def dense(delta: Delta) -> dict[str, torch.Tensor]:
    """Canonical path to the dense ΔW in float64."""
    shapes = saving.base_shapes(delta, families.named(delta.family))
    return {
        path: adapters.dense(
            u.algorithm, {n: t.double() if t.is_floating_point() else t for n, t in u.tensors.items()}, shapes[path]
        )
        for path, u in delta.updates.items()
    }


def summed(terms: list[tuple[float, Delta]]) -> dict[str, torch.Tensor]:
    """Σ wᵢ·ΔWᵢ in float64."""
    total: dict[str, torch.Tensor] = {}
    for weight, delta in terms:
        for path, change in dense(delta).items():
            total[path] = total.get(path, torch.zeros_like(change)) + weight * change
    return total


def relative_error(made: dict[str, torch.Tensor], wanted: dict[str, torch.Tensor]) -> float:
    """‖made − wanted‖ / ‖wanted‖ over all modules; a module that is not made counts as zero."""
    off = sum(float((made.get(p, torch.zeros_like(w)) - w).square().sum()) for p, w in wanted.items())
    return (off / sum(float(w.square().sum()) for w in wanted.values())) ** 0.5
