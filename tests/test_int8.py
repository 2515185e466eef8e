"""Layers in 8 bits: as near as they promise, with the same gradients, and what an adapter on them is worth."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from deltaw import formats, inject, int8
from deltaw.data import feed, folder
from deltaw.data.cache import Cache
from deltaw.delta import Delta
from deltaw.events import Event, Phase
from deltaw.families import bases, blueprint
from deltaw.training import run
from deltaw.training.exactly import exactly
from deltaw.verbs.painter import Painter

CPU = torch.device("cpu")


@pytest.fixture
def large(monkeypatch: pytest.MonkeyPatch) -> None:
    """The tiny bases' layers count as large ones."""
    monkeypatch.setattr(int8, "LEAST_NUMBERS", 64)


def test_packing_is_off_by_less_than_a_percent_and_exact_where_it_can_be() -> None:
    w = torch.randn(64, 512, generator=torch.Generator().manual_seed(0))
    weight, unit = int8.pack(w)
    assert (weight.dtype, unit.shape) == (torch.int8, (64,))
    assert float((int8.unpack(weight, unit, torch.float32) - w).norm() / w.norm()) < 0.01
    whole = torch.randint(-127, 128, (4, 8)).float()
    whole[:, 0] = 127
    assert torch.equal(int8.unpack(*int8.pack(whole * 0.5), torch.float32), whole * 0.5)
    assert not int8.unpack(*int8.pack(torch.zeros(2, 3)), torch.float32).any()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_packed_layer_computes_what_its_numbers_say(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    linear = nn.Linear(32, 16).requires_grad_(False)
    packed = int8.packed(linear)
    same = nn.Linear(32, 16, dtype=dtype).requires_grad_(False)
    same.weight.data, same.bias.data = int8.unpack(packed.weight, packed.unit, dtype), linear.bias.to(dtype)
    packed.bias = same.bias
    x = torch.randn(2, 5, 32, dtype=dtype)
    found = []
    for layer in (packed, same):
        asked = x.clone().requires_grad_()
        y = layer(asked)
        y.square().sum().backward()
        found.append((y.detach(), asked.grad))
    assert torch.equal(found[0][0], found[1][0])
    assert torch.equal(found[0][1], found[1][1])


def test_an_adapter_on_a_packed_layer_is_one_on_its_numbers() -> None:
    torch.manual_seed(0)
    linear = nn.Linear(32, 16).requires_grad_(False)
    packed = int8.packed(linear)
    linear.weight.data = int8.unpack(packed.weight, packed.unit, torch.float32)
    x, found = torch.randn(3, 32), []
    for layer in (packed, linear):
        net = nn.Sequential(layer)
        wrapped = inject.wrap(net, "0", 4, 4.0, torch.Generator().manual_seed(0))
        wrapped.modules["0"].up.data.normal_(generator=torch.Generator().manual_seed(1))
        net(x).square().sum().backward()
        found.append([p.grad for p in wrapped.parameters().values()])
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


@pytest.mark.usefixtures("large")
@pytest.mark.parametrize("kind", ["lora", "full"])
def test_files_are_applied_to_a_packed_base(tiny_base: Path, kind: str) -> None:
    base = bases.open_base(tiny_base)
    painter = Painter(base, "cpu", "float32", packed=True)
    attention = painter.network.get_submodule("mid_block.attentions.0.transformer_blocks.0.attn1.to_q")
    assert isinstance(attention, int8.Int8Linear)
    generator = torch.Generator().manual_seed(0)
    wrapped = inject.wrap(base.denoiser(CPU, torch.float32), r"mid.*attn1\.to_q$", 4, 4.0, generator)
    for module in wrapped.modules.values():
        module.up.data.normal_(generator=generator)
    delta = inject.take(wrapped, base.family, base.component)
    [(path, update)] = delta.updates.items()
    dense = update.tensors["up"] @ update.tensors["down"]
    if kind == "full":
        delta = Delta(base.family, {path: type(update)("full", {"diff": dense})})
    x = torch.randn(2, attention.in_features)
    with inject.applied(painter.networks(), [(delta, 0.5)]):
        changed = painter.network.get_submodule("mid_block.attentions.0.transformer_blocks.0.attn1.to_q")(x)
    assert torch.allclose(changed - attention(x), 0.5 * x @ dense.T, atol=0.05 if kind == "full" else 1e-4)


@pytest.mark.usefixtures("large")
def test_a_network_is_read_packed_as_it_is_packed_afterwards(tiny_flux: Path) -> None:
    base = bases.open_base(tiny_flux)
    read, plain = base.denoiser(CPU, torch.bfloat16, packed=True), base.denoiser(CPU, torch.float32)
    int8.pack_all(plain)
    ours, theirs = read.state_dict(), plain.state_dict()
    assert ours.keys() == theirs.keys()
    assert sum(t.dtype is torch.int8 for t in ours.values()) > 20
    assert all(torch.equal(t, theirs[n]) for n, t in ours.items() if t.dtype is torch.int8)
    foretold = blueprint.of(base.folder.configs).denoiser(torch.bfloat16, packed=True).state_dict()
    assert {n: (t.shape, t.dtype) for n, t in foretold.items()} == {n: (t.shape, t.dtype) for n, t in ours.items()}


@pytest.mark.usefixtures("large")
@pytest.mark.parametrize("kind", ["tiny_flux", "tiny_sd3"])
def test_t5_is_read_packed_and_its_texts_are_nearly_the_same(kind: str, request: pytest.FixtureRequest) -> None:
    base: Any = bases.open_base(request.getfixturevalue(kind))
    read, plain = (base.t5(CPU, torch.float32, packed=packed) for packed in (True, False))
    exact = plain(torch.tensor([[3, 1]]))[0]
    assert read.encoder.embed_tokens.weight is read.shared.weight
    int8.pack_all(plain)
    ours, theirs = read.state_dict(), plain.state_dict()
    assert ours.keys() == theirs.keys()
    assert sum(t.dtype is torch.int8 for t in ours.values()) >= 4
    assert all(torch.equal(t, theirs[n]) for n, t in ours.items())
    assert float((read(torch.tensor([[3, 1]]))[0] - exact).norm() / exact.norm()) < 0.02
    foretold = blueprint.of(base.folder.configs).text_encoders(packed=True)[-1].state_dict()
    assert {n: (t.shape, t.dtype is torch.int8) for n, t in foretold.items()} == {
        n: (t.shape, t.dtype is torch.int8) for n, t in ours.items()
    }
    pipe = base.pipeline(CPU, torch.float32, packed=True, networkless=True)
    drawn = getattr(pipe, base.packed_text_part).state_dict()
    assert all(torch.equal(t, ours[n]) for n, t in drawn.items())
    texts = [base.text_encoder(CPU, packed=packed)(["a cat"]) for packed in (True, False)]
    assert 0 < float((texts[0] - texts[1]).norm() / texts[1].norm()) < 0.02


def test_texts_of_8_bits_are_cached_apart(tiny_flux: Path, pictures: Callable[..., Path], tmp_path: Path) -> None:
    base = bases.open_base(tiny_flux)
    found, cache = folder.scan(pictures(2)).pictures, Cache(tmp_path / "cache")

    def encoded(packed: bool) -> list[str]:
        heard: list[Event] = []
        feed.fill(base, found, [(64, 64)] * 2, ["a", "b"], CPU, cache, heard.append, packed=packed)
        return [e.name for e in heard if isinstance(e, Phase)]

    assert "encode captions" in encoded(False)
    assert encoded(False) == []
    assert encoded(True) == ["encode captions"]
    assert encoded(True) == []


@pytest.mark.usefixtures("large")
def test_it_computes_exactly_in_float32_and_is_left_as_it_was(tiny_base: Path) -> None:
    base = bases.open_base(tiny_base)
    network = base.denoiser(CPU, torch.bfloat16, packed=True)
    before = {n: t.clone() for n, t in network.state_dict().items()}
    wide = base.denoiser(CPU, torch.bfloat16, packed=True).float()
    x, times = torch.randn(2, 4, 8, 8), torch.tensor([3, 700])
    text = torch.randn(2, *base.text_shape)
    with torch.no_grad(), exactly(network):
        found = base.denoise(network, x, times, text)
    with torch.no_grad():
        assert torch.equal(found, base.denoise(wide, x, times, text))
    assert all(torch.equal(t, before[n]) and t.dtype is before[n].dtype for n, t in network.state_dict().items())


@pytest.mark.usefixtures("large")
@pytest.mark.parametrize("kind", ["tiny_base", "tiny_xl", "tiny_flux", "tiny_sd3"])
def test_a_run_on_a_packed_base_goes_through_and_says_so(
    kind: str, request: pytest.FixtureRequest, pictures: Callable[..., Path], tmp_path: Path
) -> None:
    base = request.getfixturevalue(kind)
    settings = ["rank=2", "sample_steps=2", "snapshots=2", "base_int8=true"]
    report = run.train(pictures(10), base=str(base), out=tmp_path / "run", steps=6, settings=settings)
    delta, match = formats.load(report.file, shapes=formats.shapes_of(base))
    assert delta.updates
    assert not match.partial
    assert '"base_int8": true' in delta.metadata["deltaw.recipe"]
