"""Gated units that keep their projection alone: what diffusers' compute, by torch and by the kernels (in Triton's interpreter)."""

from __future__ import annotations

import pytest
import torch
from diffusers.models.activations import GEGLU
from torch import nn

from deltaw.families import gate

CPU, CUDA = torch.device("cpu"), torch.device("cuda")


def unit() -> GEGLU:
    torch.manual_seed(0)
    return GEGLU(24, 50).requires_grad_(False)


def test_outputs_and_gradients_are_those_of_diffusers(fused: bool) -> None:
    theirs, ours = unit(), unit()
    gate.speed_up(ours, CUDA, torch.bfloat16)
    ours.fused = fused
    x = torch.randn(2, 33, 24, requires_grad=True)
    y = torch.randn(2, 33, 50)
    found, wanted = ours(x), theirs(x)
    assert torch.allclose(found, wanted, atol=1e-5)
    of_x, expected = (torch.autograd.grad((out * y).sum(), [x])[0] for out in (found, wanted))
    assert torch.allclose(of_x, expected, atol=1e-5)


@pytest.mark.parametrize("device", [CPU, CUDA])
def test_without_weights_on_a_gpu_torch_computes(device: torch.device) -> None:
    model = nn.Sequential(unit())
    gate.speed_up(model, device, torch.bfloat16)
    assert isinstance(model[0], gate.FrugalGEGLU)
    assert not model[0].fused


def test_it_keeps_the_projection_alone() -> None:
    kept: list[torch.Size] = []
    model = unit()
    gate.speed_up(model, CUDA, torch.bfloat16)
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t.shape) or t, lambda t: t):
        model(torch.randn(7, 24, requires_grad=True))
    assert kept.count(torch.Size([7, 100])) == 1
    assert torch.Size([7, 50]) not in kept
