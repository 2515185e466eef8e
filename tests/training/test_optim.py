"""Optimizers reach the minimum; the rate is a function of the step."""

import pytest
import torch
from torch import nn

from deltaw.errors import UsageError
from deltaw.training import optim


@pytest.mark.parametrize(("name", "lr"), [("adamw", 0.05), ("prodigy", 1.0)])
def test_minimises_a_quadratic(name: str, lr: float) -> None:
    goal = torch.tensor([1.0, -2.0, 3.0])
    x = nn.Parameter(torch.zeros(3))
    optimizer = optim.ALL[name].make([x], lr, 0.0)
    for _ in range(400):
        loss = (x - goal).square().sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert torch.allclose(x, goal, atol=1e-2)


def test_every_optimizer_is_tried() -> None:
    assert set(optim.ALL) == {"adamw", "prodigy"}


def test_prodigy_finds_its_rate_says_nothing_and_keeps_what_it_says(capsys: pytest.CaptureFixture[str]) -> None:
    x = nn.Parameter(torch.tensor([30.0]))
    kind = optim.ALL["prodigy"]
    optimizer = kind.make([x], 1.0, 0.01)
    assert not optim.found_numbers(optimizer)
    first = optim.found_rate(optimizer)
    for _ in range(50):
        optimizer.zero_grad()
        x.square().sum().backward()
        optimizer.step()
    found = optim.found_rate(optimizer)
    assert first == 1e-5
    assert found is not None
    assert found > 0.1
    assert {"d", "d_max", "d_numerator", "k"} <= set(optim.found_numbers(optimizer))
    kept = [t for t in optimizer.state[x].values() if torch.is_tensor(t) and t.shape == x.shape]
    assert len(kept) == kind.n_states
    assert capsys.readouterr() == ("", "")
    assert optim.found_rate(optim.ALL["adamw"].make([x], 0.1, 0.0)) is None
    assert not optim.found_numbers(optim.ALL["adamw"].make([x], 0.1, 0.0))


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    with pytest.raises(UsageError, match="needs the package prodigyopt") as caught:
        optim.ALL["prodigy"].require()
    assert "deltaw[optim]" in caught.value.advice
    optim.ALL["adamw"].require()


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
