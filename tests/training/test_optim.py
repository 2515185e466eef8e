"""Optimizers reach the minimum; the rate is a function of the step."""

import pytest
import torch
from torch import nn

from deltaw.training import optim


@pytest.mark.parametrize("name", optim.ALL)
def test_minimises_a_quadratic(name: str) -> None:
    goal = torch.tensor([1.0, -2.0, 3.0])
    x = nn.Parameter(torch.zeros(3))
    optimizer = optim.ALL[name]([x], 0.05, 0.0)
    for _ in range(400):
        loss = (x - goal).square().sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert torch.allclose(x, goal, atol=1e-2)


def test_the_rate_climbs_to_its_peak_and_falls_to_nothing() -> None:
    rate = optim.Rate(peak=1.0, n_steps=100, warmup_steps=10, schedule="cosine")
    assert [rate.at(s) for s in (1, 5, 10, 11)] == pytest.approx([0.1, 0.5, 1.0, 1.0])
    assert rate.at(100) < 0.01
    assert all(rate.at(s) > rate.at(s + 1) for s in range(11, 100))
    assert optim.Rate(1.0, 100, 0, "linear").at(51) == pytest.approx(0.5)
    assert {optim.Rate(1.0, 100, 0, "constant").at(s) for s in range(1, 101)} == {1.0}


def test_clip_scales_to_the_norm_and_returns_what_it_was() -> None:
    x = nn.Parameter(torch.zeros(2))
    x.grad = torch.tensor([3.0, 4.0])
    assert optim.clip([x], 1.0) == pytest.approx(5.0)
    assert x.grad.norm() == pytest.approx(1.0, rel=1e-4)
    assert optim.clip([x], 0.0) == pytest.approx(1.0, rel=1e-4)
