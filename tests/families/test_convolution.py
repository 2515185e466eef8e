"""Frozen convolutions give what torch's give, keep their weights alone, and become a product where that is faster."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from torch import nn

from deltaw.families import bases, blueprint, convolution
from deltaw.families.convolution import FrozenConv2d

CPU = torch.device("cpu")
KINDS = {
    "3×3": {"kernel_size": 3, "padding": 1},
    "without bias": {"kernel_size": 3, "padding": 1, "bias": False},
    "1×1": {"kernel_size": 1},
    "halving": {"kernel_size": 3, "padding": 1, "stride": 2},
    "wide": {"kernel_size": 3, "padding": 2, "dilation": 2},
    "grouped": {"kernel_size": 3, "padding": 1, "groups": 2},
}


def pair(dtype: torch.dtype = torch.float32, device: torch.device = CPU, **kind: object) -> tuple[nn.Conv2d, nn.Conv2d]:
    """The same layer, torch's and frozen."""
    torch.manual_seed(0)
    theirs = nn.Conv2d(4, 6, **kind).to(dtype).requires_grad_(False)  # type: ignore[arg-type]
    ours = copy.deepcopy(theirs)
    convolution.freeze(ours, device)
    return theirs, ours


def both(layer: nn.Module, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The result and a gradient to the input."""
    y = layer(x)
    g = torch.randn(y.shape, generator=torch.Generator().manual_seed(1)).to(y.dtype)
    return y, torch.autograd.grad(y, x, g)[0]


@pytest.mark.parametrize("kind", KINDS)
def test_a_frozen_convolution_is_a_convolution(kind: str) -> None:
    theirs, ours = pair(**KINDS[kind])
    assert isinstance(ours, FrozenConv2d)
    x = torch.randn(2, 4, 7, 5, requires_grad=True)
    for mine, other in zip(both(ours, x), both(theirs, x), strict=True):
        assert torch.allclose(mine, other, atol=1e-6)


@pytest.mark.parametrize("kind", ["3×3", "without bias"])
def test_the_product_is_as_near_to_float32(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(convolution, "MOST_PIXELS", {torch.bfloat16: ((1, 70),)})
    theirs, ours = pair(torch.bfloat16, **KINDS[kind])
    x = torch.randn(2, 4, 7, 5).bfloat16().requires_grad_()
    exact = copy.deepcopy(theirs).float()
    wanted = both(exact, x.detach().float().requires_grad_())
    products = []
    apply = convolution._ConvolutionProduct.apply
    monkeypatch.setattr(convolution._ConvolutionProduct, "apply", lambda *a: products.append(1) or apply(*a))
    for mine, other, target in zip(both(ours, x), both(theirs, x), wanted, strict=True):
        error, usual = (float((t.detach().float() - target.detach()).norm()) for t in (mine, other))
        assert mine.shape == other.shape
        assert mine.dtype is torch.bfloat16
        assert error < 2 * usual
        assert mine.is_contiguous()
    assert products, "the rule says that it is one"


@pytest.mark.parametrize(
    ("kind", "dtype", "device", "side"),
    [
        ("3×3", torch.bfloat16, "cpu", 6),
        ("3×3", torch.float32, "cpu", 5),
        ("3×3", torch.bfloat16, "cuda", 5),
        ("1×1", torch.bfloat16, "cpu", 5),
        ("halving", torch.bfloat16, "cpu", 5),
        ("wide", torch.bfloat16, "cpu", 5),
        ("grouped", torch.bfloat16, "cpu", 5),
    ],
)
def test_others_are_no_product(
    kind: str, dtype: torch.dtype, device: str, side: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Too many pixels, another precision or device, or another kind of layer."""
    monkeypatch.setattr(convolution, "MOST_PIXELS", {torch.bfloat16: ((1, 25),)})
    _, ours = pair(dtype, torch.device(device), **KINDS[kind])
    assert isinstance(ours, FrozenConv2d)
    assert not ours._is_faster_as_product(torch.zeros(1, 4, side, side, dtype=dtype))
    if side == 5:
        _, usual = pair(torch.bfloat16, **KINDS["3×3"])
        assert usual._is_faster_as_product(torch.zeros(1, 4, side, side, dtype=torch.bfloat16))  # type: ignore[attr-defined]


def test_the_input_is_not_kept() -> None:
    kept: list[tuple[int, ...]] = []
    x = torch.randn(2, 4, 7, 5, requires_grad=True)
    for layer in pair(**KINDS["3×3"]):
        with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(tuple(t.shape)) or t, lambda t: t):
            layer(x)
    weight = (6, 4, 3, 3)
    assert kept == [tuple(x.shape), weight, weight], "torch's keeps both, ours its weights"


def test_a_trained_one_is_ordinary() -> None:
    """Other libraries make layers of the same class, as peft does of those that it puts beside a convolution."""
    _, frozen = pair(**KINDS["3×3"])
    made = type(frozen)(4, 6, 3, padding=1)
    made.load_state_dict(frozen.state_dict())
    x = torch.randn(2, 4, 7, 5)
    assert torch.equal(made(x), frozen(x))
    made(x).sum().backward()
    assert made.weight.grad is not None


def test_a_whole_network_predicts_and_learns_the_same(tiny_base: Path) -> None:
    base = bases.open_base(tiny_base)
    ours = base.denoiser(CPU, torch.float32)
    theirs = type(ours).from_pretrained(tiny_base / "unet").requires_grad_(False)  # type: ignore[attr-defined]
    assert not [m for m in ours.modules() if type(m) is nn.Conv2d]
    x = torch.randn(1, 4, 8, 8, requires_grad=True)
    times, text = torch.tensor([500]), torch.randn(1, *base.text_shape)
    (mine, g), (other, h) = (
        (y, torch.autograd.grad(y.square().mean(), x)[0])
        for y in (base.denoise(n, x, times, text) for n in (ours, theirs))
    )
    assert torch.allclose(mine, other, atol=1e-5)
    assert torch.allclose(g, h, atol=1e-6)


def test_the_blueprint_has_the_same_layers(tiny_base: Path) -> None:
    made = blueprint.Blueprint(bases.open_base(tiny_base).folder.configs)
    for device in ("cpu", "cuda"):
        layers = [m for m in made.denoiser(torch.bfloat16, torch.device(device)).modules() if isinstance(m, nn.Conv2d)]
        assert layers
        assert all(isinstance(m, FrozenConv2d) and m.is_on_cpu == (device == "cpu") for m in layers)
