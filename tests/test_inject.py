"""Adapters in a network: nothing changes at first, gradients are right, W is never touched."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional

from deltaw import adapters, inject
from deltaw.delta import Delta, Update
from deltaw.errors import InputError, UsageError


def network() -> nn.Module:
    torch.manual_seed(0)
    model = nn.Sequential()
    model.add_module("attn1", nn.ModuleDict({"to_q": nn.Linear(12, 10), "to_k": nn.Linear(12, 10, bias=False)}))
    model.add_module("conv", nn.Conv2d(4, 6, 3, padding=1, stride=2))
    return model.requires_grad_(False)


def generator() -> torch.Generator:
    return torch.Generator().manual_seed(1)


def test_wrapping_changes_no_output() -> None:
    model = network()
    x, picture = torch.randn(2, 5, 12), torch.randn(2, 4, 8, 8)
    before = model.attn1["to_q"](x), model.conv(picture)
    wrapped = inject.wrap(model, ".", rank=3, alpha=3.0, generator=generator())
    assert list(wrapped.modules) == ["attn1.to_q", "attn1.to_k", "conv"]
    assert torch.equal(model.attn1["to_q"](x), before[0])
    assert torch.equal(model.conv(picture), before[1])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_gradients_are_those_of_plain_autograd(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    base = nn.Linear(12, 10).to(dtype).requires_grad_(False)
    tensors = {
        "up": torch.randn(10, 3, dtype=dtype),
        "down": torch.randn(3, 12, dtype=dtype),
        "alpha": torch.tensor(6.0),
    }
    module = inject.LowRankLinear(base, tensors)
    x = torch.randn(4, 7, 12, dtype=dtype, requires_grad=True)
    weights = torch.randn(4, 7, 10, dtype=dtype)
    (module(x) * weights).sum().backward()
    x2, up, down = (t.detach().clone().requires_grad_() for t in (x, tensors["up"], tensors["down"]))
    expected = functional.linear(x2, base.weight, base.bias) + 2.0 * (x2 @ down.t()) @ up.t()
    (expected * weights).sum().backward()
    for found, wanted in ((x.grad, x2.grad), (module.up.grad, up.grad), (module.down.grad, down.grad)):
        assert torch.allclose(found, wanted, rtol=1e-4, atol=1e-5)


def test_the_first_layer_gets_no_input_gradient() -> None:
    module = inject.LowRankLinear(
        nn.Linear(4, 4).requires_grad_(False),
        {"up": torch.ones(4, 1), "down": torch.ones(1, 4), "alpha": torch.tensor(1.0)},
    )
    x = torch.randn(3, 4)
    module(x).sum().backward()
    assert x.grad is None
    assert module.up.grad is not None


def test_take_gives_the_trained_change() -> None:
    model = network()
    original = copy.deepcopy(model)
    wrapped = inject.wrap(model, "to_q|conv", rank=2, alpha=4.0, generator=generator())
    with torch.no_grad():
        for parameter in wrapped.parameters().values():
            parameter.normal_(generator=generator())
    delta = inject.take(wrapped, "sd1", "unet")
    assert set(delta.updates) == {"unet.attn1.to_q", "unet.conv"}
    x, picture = torch.randn(2, 5, 12), torch.randn(2, 4, 8, 8)
    with inject.applied({"unet": original}, [(delta, 1.0)]):
        assert torch.allclose(original.attn1["to_q"](x), model.attn1["to_q"](x), atol=1e-5)
        assert torch.allclose(original.conv(picture), model.conv(picture), atol=1e-4)


def _delta(seed: int, rank: int, alpha: float) -> Delta:
    torch.manual_seed(seed)
    linear = {"up": torch.randn(10, rank), "down": torch.randn(rank, 12), "alpha": torch.tensor(alpha)}
    conv = {"up": torch.randn(6, rank, 1, 1), "down": torch.randn(rank, 4, 3, 3), "alpha": torch.tensor(alpha)}
    return Delta("sd1", {"unet.attn1.to_q": Update("lora", linear), "unet.conv": Update("lora", conv)})


def test_applied_is_the_weighted_sum_of_dense_changes_and_leaves_no_trace() -> None:
    model = network()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    deltas = [(_delta(1, 2, 2.0), 0.7), (_delta(2, 3, 1.5), -1.2)]
    x, picture = torch.randn(2, 5, 12), torch.randn(2, 4, 8, 8)
    with inject.applied({"unet": model}, deltas):
        got = model.attn1["to_q"](x), model.conv(picture)
    sums = {
        path: sum(s * adapters.named("lora").delta(d.updates[path].tensors, shape) for d, s in deltas)
        for path, shape in (("unet.attn1.to_q", (10, 12)), ("unet.conv", (6, 4, 3, 3)))
    }
    q, conv = model.attn1["to_q"], model.conv
    assert torch.allclose(got[0], functional.linear(x, q.weight + sums["unet.attn1.to_q"], q.bias), atol=1e-4)
    wanted = functional.conv2d(picture, conv.weight + sums["unet.conv"], conv.bias, 2, 1)
    assert torch.allclose(got[1], wanted, atol=1e-3)
    assert list(model.state_dict()) == list(before)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_a_change_of_another_shape_or_module_is_refused_and_undone() -> None:
    model = network()
    good = _delta(1, 2, 2.0).updates["unet.attn1.to_q"]
    wrong = Delta("sd1", {"unet.attn1.to_q": good, "unet.conv": good})
    with pytest.raises(InputError, match="does not fit"), inject.applied({"unet": model}, [(wrong, 1.0)]):
        pass
    assert isinstance(model.attn1["to_q"], nn.Linear)
    absent = Delta("sd1", {"unet.elsewhere": good})
    with pytest.raises(InputError, match="lacks"), inject.applied({"unet": model}, [(absent, 1.0)]):
        pass


@pytest.mark.parametrize(
    ("targets", "rank", "words"),
    [("(", 2, "no regular expression"), ("nothing", 2, "matches no"), ("to_q", 99, "rank 99 is more than")],
)
def test_bad_targets_and_ranks_are_refused(targets: str, rank: int, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        inject.wrap(network(), targets, rank=rank, alpha=1.0, generator=generator())
