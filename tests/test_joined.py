"""Layers that read the same x as one: outputs and gradients of each alone. The kernels run in Triton's interpreter, where Triton is."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from deltaw import inject, int8, joined
from deltaw.flat import Flat


def attention(n_in: int, n_out: int, *, bias: bool) -> nn.ModuleDict:
    torch.manual_seed(0)
    layers = {name: nn.Linear(n_in, n_out, bias=bias) for name in ("to_q", "to_k", "to_v")}
    return nn.ModuleDict(layers).requires_grad_(False)


def adapted(model: nn.Module, rank: int) -> inject.Wrapped:
    wrapped = inject.wrap(model, ".", rank, 2.0 * rank, torch.Generator().manual_seed(1))
    for i, module in enumerate(wrapped.modules.values()):
        nn.init.normal_(module.up, generator=torch.Generator().manual_seed(i))
    return wrapped


def test_layers_that_differ_are_not_joined() -> None:
    model = attention(12, 10, bias=False)
    model["other"] = nn.Linear(12, 11, bias=False)
    model["biased"] = nn.Linear(12, 10)
    wrapped = adapted(model, 2)
    assert joined.fit([wrapped.modules[name] for name in ("to_q", "to_k", "to_v")])
    assert not joined.fit([wrapped.modules["to_q"], wrapped.modules["other"]])
    assert not joined.fit([wrapped.modules["to_q"], wrapped.modules["biased"]])
    assert not joined.fit([wrapped.modules["to_q"], model["to_k"].base])


def test_what_a_kernel_cannot_hold_is_not_joined() -> None:
    wrapped = adapted(attention(300, 300, bias=False), 50)
    assert joined.fit([wrapped.modules["to_q"], wrapped.modules["to_k"]])
    assert not joined.fit(list(wrapped.modules.values()))


def test_the_stacked_weight_holds_nothing_twice() -> None:
    model = attention(12, 10, bias=True)
    before = [m.weight.clone() for m in model.values()]
    wrapped = adapted(model, 2)
    names = list(wrapped.modules)
    flat = Flat(wrapped.parameters(), joined.order([names]), torch.float32)
    [group] = joined.join([names], wrapped.modules, flat)
    assert torch.equal(group.weight, torch.cat(before))
    for module in wrapped.modules.values():
        assert module.base.weight.untyped_storage().data_ptr() == group.weight.untyped_storage().data_ptr()


def test_without_gradients_and_in_another_precision_each_layer_answers_itself() -> None:
    wrapped = adapted(attention(12, 10, bias=True), 2)
    names = list(wrapped.modules)
    flat = Flat(wrapped.parameters(), joined.order([names]), torch.bfloat16)
    [group] = joined.join([names], wrapped.modules, flat)
    x = torch.randn(3, 5, 12)
    apart = torch.cat([m(x) for m in wrapped.modules.values()], -1)
    assert torch.equal(group(x), apart)


def test_what_the_kernels_cannot_count_is_computed_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    wrapped = adapted(attention(12, 10, bias=True), 2)
    names = list(wrapped.modules)
    flat = Flat(wrapped.parameters(), joined.order([names]), torch.float32)
    [group] = joined.join([names], wrapped.modules, flat)
    assert group.fits(torch.ones(5, 12))
    monkeypatch.setattr(joined, "MOST_NUMBERS", 5 * 30 - 1)
    assert not group.fits(torch.ones(5, 12))
    flat.begin()
    group(torch.ones(5, 12)).sum().backward()
    assert all(grad.any() for grad in flat.split(flat.grads).values())


def test_a_cpu_needs_no_kernels() -> None:
    assert "NVIDIA" in joined.broken(torch.device("cpu"))


@pytest.mark.usefixtures("interpreter")
@pytest.mark.parametrize("rank", [3, 16])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("members", [("to_q",), ("to_q", "to_k"), ("to_q", "to_k", "to_v")])
def test_outputs_and_gradients_are_those_of_each_layer_alone(members: tuple[str, ...], bias: bool, rank: int) -> None:
    model = attention(70, 40, bias=bias)
    model = nn.ModuleDict({name: model[name] for name in members})
    alone, wrapped = adapted(copy.deepcopy(model), rank), adapted(model, rank)
    flat = Flat(wrapped.parameters(), joined.order([members]), torch.float32)
    [group] = joined.join([members], wrapped.modules, flat)
    x, y = torch.randn(2, 33, 70, requires_grad=True), torch.randn(2, 33, 40 * len(members))
    flat.begin()
    found = group(x)
    wanted = torch.cat([m(x) for m in alone.modules.values()], -1)
    assert torch.allclose(found, wanted, atol=1e-4)
    (of_x,) = torch.autograd.grad((found * y).sum(), [x])
    expected = torch.autograd.grad((wanted * y).sum(), [x, *alone.parameters().values()])
    assert torch.allclose(of_x, expected[0], atol=1e-3)
    for name, grad in zip(alone.parameters(), expected[1:], strict=True):
        assert torch.allclose(flat.split(flat.grads)[name], grad, atol=1e-2, rtol=1e-3), name


@pytest.mark.usefixtures("interpreter")
def test_the_first_layers_train_though_their_x_does_not() -> None:
    model = attention(16, 16, bias=False)
    wrapped = adapted(model, 2)
    flat = Flat(wrapped.parameters(), joined.order([["to_q"]]), torch.float32)
    joined.join([["to_q"]], wrapped.modules, flat)
    flat.begin()
    model["to_q"](torch.randn(4, 16)).sum().backward()
    grads = flat.split(flat.grads)
    assert grads["to_q.up"].any()
    assert grads["to_q.down"].any()


@pytest.mark.usefixtures("interpreter")
def test_packed_layers_are_joined_packed() -> None:
    model = attention(256, 256, bias=False)
    int8.pack_all(model)
    wrapped = adapted(model, 2)
    names = list(wrapped.modules)
    apart = copy.deepcopy(model)
    flat = Flat(wrapped.parameters(), joined.order([names]), torch.float32)
    [group] = joined.join([names], wrapped.modules, flat)
    assert group.weight.dtype is torch.int8
    x = torch.randn(5, 256, requires_grad=True)
    assert torch.allclose(group(x), torch.cat([m(x) for m in apart.values()], -1), atol=1e-3)
