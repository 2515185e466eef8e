"""Attention by plain operations gives what the fused kernel gives, and is used where it may be."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from diffusers import UNet2DConditionModel
from diffusers.models.attention_processor import Attention, AttnProcessor2_0
from torch.nn import functional

from deltaw.families import attention, bases, blueprint

Mix = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]
CPU = torch.device("cpu")


def processors(network: torch.nn.Module) -> list[object]:
    return [m.processor for m in network.modules() if isinstance(m, Attention)]


@pytest.mark.parametrize("piece", [1 << 23, 6 * 16 * 5, 6 * 7 * 3])
@pytest.mark.parametrize("mix", [attention.whole, attention.piecewise, attention.in_float32])
@pytest.mark.parametrize("keys", [16, 7])
def test_attend_is_attention(keys: int, mix: Mix, piece: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whole or in pieces, also ones that do not divide the queries."""
    monkeypatch.setattr(attention, "PIECE", piece)
    torch.manual_seed(0)
    stored = [torch.randn(2, 3, t, 8, requires_grad=True) for t in (16, keys, keys)]
    ours, theirs = mix(*stored), functional.scaled_dot_product_attention(*stored)
    assert torch.allclose(ours, theirs, atol=1e-6)
    grad = torch.randn_like(ours)
    for mine, other in zip(
        torch.autograd.grad(ours, stored, grad), torch.autograd.grad(theirs, stored, grad), strict=True
    ):
        assert torch.allclose(mine, other, atol=1e-6)


def test_pieces_are_used_without_gradients_and_where_weights_are_many(monkeypatch: pytest.MonkeyPatch) -> None:
    used: list[str] = []
    monkeypatch.setattr(attention, "FEW", 0)
    for name in ("whole", "piecewise"):
        kept = getattr(attention, name)
        monkeypatch.setattr(attention, name, lambda *x, name=name, kept=kept: (used.append(name), kept(*x))[1])
    x = torch.randn(1, 2, 8, 4, requires_grad=True)
    attention.attend(x, x, x)
    with torch.no_grad():
        attention.attend(x, x, x)
    attention.attend(*(x.detach() for _ in range(3)))
    monkeypatch.setattr(attention, "KEPT", 2 * 8 * 8 - 1)
    attention.attend(x, x, x)
    assert used == ["whole", "piecewise", "piecewise", "piecewise"]


def test_few_weights_are_computed_in_float32_and_rounded(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    x = torch.randn(1, 2, 8, 4, dtype=torch.bfloat16)
    exact = functional.scaled_dot_product_attention(x.float(), x.float(), x.float())
    assert torch.equal(attention.attend(x, x, x), exact.to(x.dtype))
    monkeypatch.setattr(attention, "FEW", 2 * 8 * 8 - 1)
    assert not torch.equal(attention.attend(x, x, x), exact.to(x.dtype))


@pytest.mark.parametrize("piece", [attention.PIECE, 100])
def test_the_network_predicts_the_same(tiny_base: Path, monkeypatch: pytest.MonkeyPatch, piece: int) -> None:
    """As near to float32 as diffusers' own attention in bfloat16, to a fifth."""
    monkeypatch.setattr(attention, "PIECE", piece)
    base = bases.open_base(tiny_base)
    exact = UNet2DConditionModel.from_pretrained(tiny_base / "unet")
    theirs = UNet2DConditionModel.from_pretrained(tiny_base / "unet", torch_dtype=torch.bfloat16)
    ours = base.denoiser(CPU, torch.bfloat16)
    torch.manual_seed(0)
    x, times, text = torch.randn(4, 4, 8, 8), torch.tensor([1, 300, 600, 999]), torch.randn(4, 77, 16)

    def predict(network: torch.nn.Module, dtype: torch.dtype) -> torch.Tensor:
        with torch.no_grad():
            return base.denoise(network, x.to(dtype), times, text.to(dtype)).float()

    wanted = predict(exact, torch.float32)
    off = [(predict(n, torch.bfloat16) - wanted).norm() for n in (ours, theirs)]
    assert off[0] < 1.2 * off[1]
    assert off[1] < 0.05 * wanted.norm()


def test_only_the_cpu_in_bfloat16_gets_it(tiny_base: Path) -> None:
    base = bases.open_base(tiny_base)
    assert all(isinstance(p, attention.PlainAttention) for p in processors(base.denoiser(CPU, torch.bfloat16)))
    assert not any(isinstance(p, attention.PlainAttention) for p in processors(base.denoiser(CPU, torch.float32)))
    assert not attention.pays(torch.device("cuda"), torch.bfloat16)


def test_what_is_foretold_has_the_attention_that_runs(tiny_base: Path) -> None:
    made = blueprint.Blueprint(bases.open_base(tiny_base).folder.configs)
    for device, expected in ((CPU, attention.PlainAttention), (torch.device("cuda"), AttnProcessor2_0)):
        found = processors(made.denoiser(torch.bfloat16, device))
        assert found
        assert all(type(p) is expected for p in found)


def test_unusual_layers_keep_their_own() -> None:
    ordinary, unusual = Attention(8, heads=2, dim_head=4), Attention(8, heads=2, dim_head=4, residual_connection=True)
    attention.speed_up(torch.nn.ModuleList([ordinary, unusual]), CPU, torch.bfloat16)
    assert isinstance(ordinary.processor, attention.PlainAttention)
    assert isinstance(unusual.processor, AttnProcessor2_0)


def test_a_mask_is_heeded() -> None:
    torch.manual_seed(0)
    layer = Attention(8, heads=2, dim_head=4).to(torch.bfloat16)
    x = torch.randn(1, 3, 8, dtype=torch.bfloat16)
    mask = torch.tensor([[[0.0, 0.0, -10000.0]]], dtype=torch.bfloat16)
    expected = layer(x, attention_mask=mask)
    attention.speed_up(layer, CPU, torch.bfloat16)
    assert torch.equal(layer(x, attention_mask=mask), expected)
    assert not torch.equal(layer(x), expected)
