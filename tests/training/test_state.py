"""The state file: all or nothing, and never another run's."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from deltaw import tensorfile
from deltaw.errors import InputError, UsageError
from deltaw.training import optim, state


@pytest.mark.parametrize("name", optim.ALL)
def test_an_optimizer_goes_on_bit_for_bit(tmp_path: Path, name: str) -> None:
    def steps(x: nn.Parameter, optimizer: torch.optim.Optimizer, n: int) -> None:
        for _ in range(n):
            optimizer.zero_grad()
            (x - 3).square().sum().backward()
            optimizer.step()

    whole = nn.Parameter(torch.arange(4.0))
    optimizer = optim.ALL[name]([whole], 0.1, 0.01)
    steps(whole, optimizer, 5)
    saved = state.State(5, {"x": whole.detach().clone()}, state.optimizer_tensors(optimizer), {"lr": "0.1"}, {})
    state.save(tmp_path / "s.safetensors", saved)
    steps(whole, optimizer, 5)
    back = state.load(tmp_path / "s.safetensors")
    part = nn.Parameter(torch.zeros(4))
    again = optim.ALL[name]([part], 0.1, 0.01)
    state.restore(back, {"x": part}, again)
    steps(part, again, 5)
    assert torch.equal(part, whole)
    assert (back.step, back.fingerprint) == (5, {"lr": "0.1"})


def test_differences_are_all_named() -> None:
    state.require_same({"lr": "1"}, {"lr": "1"})
    with pytest.raises(UsageError) as caught:
        state.require_same({"lr": "1", "rank": "2", "seed": "0"}, {"lr": "3", "rank": "4", "seed": "0"})
    assert "lr: was 1, is 3" in str(caught.value)
    assert "rank: was 2, is 4" in str(caught.value)
    assert "seed" not in str(caught.value)


def test_a_newer_format_is_refused(tmp_path: Path) -> None:
    tensorfile.write(tmp_path / "s.safetensors", {"adapter/x": torch.zeros(1)}, {"deltaw.state": '{"format": 2}'})
    with pytest.raises(InputError, match="format 2"):
        state.load(tmp_path / "s.safetensors")


def test_a_cut_state_is_named(tmp_path: Path) -> None:
    path = tmp_path / "s.safetensors"
    state.save(path, state.State(1, {"x": torch.zeros(100)}, {}, {}, {}))
    path.write_bytes(path.read_bytes()[:-50])
    with pytest.raises(InputError, match="incomplete"):
        state.load(path)
