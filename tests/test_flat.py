"""All trained numbers in one buffer: they are the parameters themselves, and so are their gradients."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from deltaw.flat import Flat


def parameters() -> dict[str, nn.Parameter]:
    return {"a": nn.Parameter(torch.arange(6.0).view(2, 3)), "b": nn.Parameter(torch.full((3,), 7.0)),
            "c": nn.Parameter(-torch.ones(4, 3))}  # fmt: skip


@pytest.mark.parametrize("order", [(), ("c", "a")])
def test_parameters_and_gradients_are_views_of_it(order: tuple[str, ...]) -> None:
    found, before = parameters(), parameters()
    flat = Flat(found, order)
    assert all(torch.equal(found[name], before[name]) for name in before)
    assert flat.names == ["a", "b", "c"]
    (found["a"].sum() * 2 + found["b"].sum() * 3).backward()
    assert torch.equal(flat.split(flat.grads)["a"], torch.full((2, 3), 2.0))
    assert torch.equal(flat.split(flat.grads)["b"], torch.full((3,), 3.0))
    with torch.no_grad():
        flat.values.add_(1.0)
    assert torch.equal(found["c"], torch.zeros(4, 3))
    found["b"].data.zero_()
    assert not flat.split(flat.values)["b"].any()


def test_an_optimizer_does_with_it_what_it_does_with_each() -> None:
    one, many = parameters(), parameters()
    flat = Flat(one)
    optimizers = torch.optim.AdamW([flat.values], lr=0.1), torch.optim.AdamW(many.values(), lr=0.1)
    for _ in range(3):
        flat.begin()
        optimizers[1].zero_grad()
        for found in (one, many):
            sum((p**2).sum() for p in found.values()).backward()
        for optimizer in optimizers:
            optimizer.step()
    assert all(torch.allclose(one[name], many[name], atol=1e-6) for name in one)


def test_a_step_begins_with_no_gradient_and_numbers_rounded_anew() -> None:
    found = parameters()
    flat = Flat(found, rounded=torch.bfloat16)
    flat.grads.fill_(1.0)
    found["a"].data.fill_(1.0 + 2**-20)
    assert flat.rounded is not None
    flat.begin()
    assert not flat.grads.any()
    assert torch.equal(flat.split(flat.rounded)["a"], torch.ones(2, 3, dtype=torch.bfloat16))


def test_what_lies_side_by_side_is_one_matrix() -> None:
    found = parameters()
    flat = Flat(found, ("c", "a"))
    stacked = flat.stacked(["c", "a"], flat.values.detach())
    assert torch.equal(stacked, torch.cat([found["c"], found["a"]]))
    with pytest.raises(ValueError, match="side by side"):
        flat.stacked(["a", "c"], flat.values.detach())
