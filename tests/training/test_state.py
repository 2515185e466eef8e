"""The state file: all or nothing, and never another run's."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from deltaw import tensorfile
from deltaw.errors import InputError, UsageError
from deltaw.flat import Flat
from deltaw.training import optim, state


def made() -> tuple[dict[str, nn.Parameter], Flat]:
    parameters = {"x": nn.Parameter(torch.arange(4.0)), "y": nn.Parameter(torch.ones(2, 3))}
    return parameters, Flat(parameters)


@pytest.mark.parametrize(
    ("name", "order"), [("adamw", ("x", "y")), ("adamw", ("y", "x")), ("prodigy", ("x", "y"))]
)  # Prodigy's rate is a sum over all numbers, which another order rounds otherwise
def test_an_optimizer_goes_on_bit_for_bit_however_the_numbers_lie(
    tmp_path: Path, name: str, order: tuple[str, ...]
) -> None:
    def steps(parameters: dict[str, nn.Parameter], flat: Flat, optimizer: torch.optim.Optimizer, n: int) -> None:
        for _ in range(n):
            flat.begin()
            (parameters["x"].sum() * parameters["y"].square()).sum().backward()
            optimizer.step()

    whole, flat = made()
    optimizer = optim.ALL[name].make([flat.values], 0.1, 0.01)
    steps(whole, flat, optimizer, 5)
    kept = {k: p.detach().clone() for k, p in whole.items()}
    saved = state.State(5, kept, state.optimizer_tensors(optimizer, flat), {"lr": "0.1"}, {})
    state.save(tmp_path / "s.safetensors", saved)
    steps(whole, flat, optimizer, 5)
    back = state.load(tmp_path / "s.safetensors")
    part, _ = made()
    others = Flat(part, order)
    again = optim.ALL[name].make([others.values], 0.1, 0.01)
    state.restore(back, part, again, others)
    steps(part, others, again, 5)
    assert all(torch.equal(part[k], whole[k]) for k in whole)
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
        state.restore(saved, {"x": parameter}, torch.optim.AdamW([parameter]), Flat({"x": parameter}))
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
