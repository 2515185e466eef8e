"""Means of snapshots are means of ΔW."""

from __future__ import annotations

import pytest
import torch

from deltaw.adapters import lora
from deltaw.delta import Delta, Update
from deltaw.training import averaging


def _delta(seed: int, rank: int = 3, alpha: float | None = 1.5) -> Delta:
    generator = torch.Generator().manual_seed(seed)
    updates = {}
    for path, shape in (("unet.a", (10, 8)), ("unet.b", (6, 4, 3, 3))):
        ones = (1,) * (len(shape) - 2)
        tensors = {
            "up": torch.randn(shape[0], rank, *ones, generator=generator),
            "down": torch.randn(rank, *shape[1:], generator=generator),
        }
        updates[path] = Update("lora", tensors | ({"alpha": torch.tensor(alpha)} if alpha is not None else {}))
    return Delta("sd1", updates)


def _dense(delta: Delta, path: str) -> torch.Tensor:
    update = delta.updates[path]
    shape = (10, 8) if path == "unet.a" else (6, 4, 3, 3)
    return lora.delta(update.tensors, shape)


def test_the_mean_is_of_the_products_and_the_error_is_what_the_cut_leaves_out() -> None:
    deltas = [_delta(0), _delta(1)]
    lost = whole = 0.0
    mean, error = averaging.mean(deltas, 3)
    for path, update in mean.updates.items():
        exact = (_dense(deltas[0], path) + _dense(deltas[1], path)) / 2
        left = exact - _dense(mean, path)
        u, s, v = torch.linalg.svd(exact.flatten(1), full_matrices=False)
        best = (u[:, :3] * s[:3]) @ v[:3]
        assert torch.allclose(_dense(mean, path).flatten(1), best, atol=1e-4), "the optimum of its rank"
        lost, whole = lost + float(left.square().sum()), whole + float(exact.square().sum())
        assert update.tensors["up"].shape == deltas[0].updates[path].tensors["up"].shape
    assert error == pytest.approx((lost / whole) ** 0.5, rel=1e-3)
    assert error > 0.1


def test_the_mean_of_one_and_the_same_is_itself() -> None:
    mean, error = averaging.mean([_delta(0), _delta(0)], 3)
    assert error < 1e-5
    assert torch.allclose(_dense(mean, "unet.b"), _dense(_delta(0), "unet.b"), atol=1e-4)
