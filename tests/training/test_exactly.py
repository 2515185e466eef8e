"""A network in bfloat16 answers as in float32, layer by layer, and stays as it was."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from deltaw import inject
from deltaw.families import bases
from deltaw.training.exactly import exactly


def test_answers_are_those_of_float32_and_the_network_stays_in_bfloat16(tiny_base: Path) -> None:
    base = bases.open_base(tiny_base)
    narrow = base.denoiser(torch.device("cpu"), torch.bfloat16)
    wide = base.denoiser(torch.device("cpu"), torch.bfloat16)
    for network in (narrow, wide):
        wrapped = inject.wrap(network, base.targets + "|conv1$", 2, 2.0, torch.Generator().manual_seed(0))
        for parameter in wrapped.parameters().values():
            parameter.data.fill_(0.01)
    wide.float()
    x, times, text = torch.randn(2, 4, 8, 8), torch.tensor([3, 700]), torch.randn(2, 77, 16)
    before = {name: p.clone() for name, p in narrow.named_parameters()}
    with torch.no_grad():
        with exactly(narrow):
            found = base.denoise(narrow, x, times, text)
        expected = base.denoise(wide, x, times, text)
    assert torch.equal(found, expected)
    for name, parameter in narrow.named_parameters():
        assert parameter.dtype == before[name].dtype
        assert torch.equal(parameter, before[name])
    assert narrow.conv_in.weight.dtype == torch.bfloat16


def test_weights_are_narrow_again_after_a_failure(tiny_base: Path) -> None:
    base = bases.open_base(tiny_base)
    network = base.denoiser(torch.device("cpu"), torch.bfloat16)
    with exactly(network), pytest.raises(RuntimeError):
        base.denoise(network, torch.randn(1, 4, 7, 7), torch.tensor([3]), torch.randn(1, 77, 5))
    assert {p.dtype for p in network.parameters()} == {torch.bfloat16}
