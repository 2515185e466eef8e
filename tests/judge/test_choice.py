"""Which snapshot is recommended."""

from __future__ import annotations

import torch

from deltaw.judge import choice


def _run(*means: float, spread: float = 0.001) -> list[tuple[int, torch.Tensor]]:
    generator = torch.Generator().manual_seed(0)
    return [
        (10 * (i + 1), mean + spread * torch.randn(30, 1, generator=generator, dtype=torch.float64))
        for i, mean in enumerate(means)
    ]


def test_the_earliest_within_noise_is_recommended() -> None:
    assert choice.recommend(_run(1.0, 0.8, 0.7, 0.6)) == (40, "it has the lowest loss")
    step, why = choice.recommend(_run(1.0, 0.5, 0.5, 0.5, spread=0.05))
    assert step == 20
    assert "within noise" in why or "lowest" in why


def test_an_overfit_end_is_not_recommended() -> None:
    assert choice.recommend(_run(1.0, 0.7, 0.8, 1.1))[0] == 20
