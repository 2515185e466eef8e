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
    assert not state.differences({"lr": "1"}, {"lr": "1"})
    found = state.differences({"lr": "1", "rank": "2", "seed": "0"}, {"lr": "3", "seed": "0", "new": "x"})
    assert found == ["lr: was 1, is 3", "new: was absent, is x", "rank: was 2, is absent"]


def test_an_adapter_of_another_shape_is_not_taken(tmp_path: Path) -> None:
    """Copying would broadcast rank 1 into any rank."""
    parameter = nn.Parameter(torch.zeros(4, 3))
    saved = state.State(1, {"x": torch.ones(1, 3)}, {}, {}, {})
    with pytest.raises(UsageError, match=r"x was \[1, 3\], is \[4, 3\]"):
        state.restore(saved, {"x": parameter}, torch.optim.AdamW([parameter]))
    assert not parameter.any()


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
