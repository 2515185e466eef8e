"""Which layers read the same x: found in a network, joined, and the network trains as before (by Triton's interpreter)."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from deltaw import inject, joined
from deltaw.families import bases, readers, streams
from deltaw.families.base import Base

CPU = torch.device("cpu")


@pytest.fixture(params=["tiny_base", "tiny_xl", "tiny_flux", "tiny_sd3"])
def base(request: pytest.FixtureRequest) -> Base:
    path: Path = request.getfixturevalue(request.param)
    return bases.open_base(path)


def adapted(network: nn.Module, base: Base) -> inject.Wrapped:
    wrapped = inject.wrap(network, base.targets, 2, 4.0, torch.Generator().manual_seed(0))
    for i, module in enumerate(wrapped.modules.values()):
        nn.init.normal_(module.up, generator=torch.Generator().manual_seed(i))
    return wrapped


def answer(network: nn.Module, base: Base, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    generator = torch.Generator().manual_seed(5)
    side = base.resolution_px // base.factor
    channels = base.folder.configs["vae"]["latent_channels"]
    x = torch.randn(2, channels, side, side, generator=generator)
    text = torch.randn(2, *base.text_shape, generator=generator)
    return base.denoise(network, x.to(dtype), torch.tensor([3, 700]), text.to(dtype))


def test_attentions_are_told_to_call_their_readers_together(base: Base) -> None:
    network = base.denoiser(CPU, torch.float32)
    wrapped = adapted(network, base)
    with torch.no_grad():
        before = answer(network, base)
        readers.join(network, wrapped, torch.bfloat16)
        assert torch.equal(answer(network, base), before), "without gradients every layer answers itself"
    fused: Any = [m for m in network.modules() if hasattr(m, "to_qkv") and m.to_qkv is not None]
    assert bool(fused) == (base.family != "sd3"), "diffusers' fused processor of SD 3 leaves its norms out"
    assert all(isinstance(m.to_qkv, joined.Joined) for m in fused)


def test_a_small_network_and_a_cpu_join_nothing(base: Base) -> None:
    network = base.denoiser(CPU, torch.float32)
    flat, why = readers.gather(network, adapted(network, base), CPU, torch.float32)
    assert flat.rounded is None
    assert not why
    assert not any(getattr(m, "joined", None) for m in network.modules())


@pytest.mark.usefixtures("interpreter")
def test_a_joined_network_trains_as_one_that_is_not(base: Base) -> None:
    network = base.denoiser(CPU, torch.float32)
    other = copy.deepcopy(network)
    wrapped, alone = adapted(network, base), adapted(other, base)
    flat = readers.join(network, wrapped, torch.float32)
    flat.begin()
    found, wanted = answer(network, base), answer(other, base)
    assert torch.allclose(found, wanted, atol=1e-3)
    found.square().mean().backward()
    expected = torch.autograd.grad(wanted.square().mean(), list(alone.parameters().values()))
    for (name, grad), its in zip(flat.split(flat.grads).items(), expected, strict=True):
        assert float((grad - its).norm()) <= 1e-3 * float(its.norm()) + 1e-7, name


@pytest.mark.usefixtures("interpreter")
@pytest.mark.parametrize("tiny", ["tiny_flux", "tiny_sd3"])
def test_two_streams_in_half_precision_are_joined_and_train_as_before(
    tiny: str, request: pytest.FixtureRequest
) -> None:
    base = bases.open_base(request.getfixturevalue(tiny))
    network = base.denoiser(CPU, torch.float16)  # the interpreter does not know bfloat16
    streams.speed_up(network, CPU, torch.bfloat16)
    other = copy.deepcopy(network)
    wrapped, alone = adapted(network, base), adapted(other, base)
    flat = readers.join(network, wrapped, torch.float16)
    layers: Any = [m for m in network.modules() if hasattr(m, "to_added_qkv")]
    assert layers
    assert all(m.fused_projections and isinstance(m.to_added_qkv, joined.Joined) for m in layers)
    flat.begin()
    found, wanted = (answer(net, base, torch.float16).float() for net in (network, other))
    assert float((found - wanted).detach().norm()) <= 0.02 * float(wanted.detach().norm())
    found.square().mean().backward()
    expected = torch.autograd.grad(wanted.square().mean(), list(alone.parameters().values()))
    ours = torch.cat([grad.flatten() for grad in flat.split(flat.grads).values()])
    theirs = torch.cat([grad.flatten() for grad in expected])
    assert float((ours - theirs).norm()) <= 0.05 * float(theirs.norm())
