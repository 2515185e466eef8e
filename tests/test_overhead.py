"""The adapters' share of a step stays small: a ratio of two networks on the same work, not a time."""

from __future__ import annotations

import torch

from benchmarks.step_time import contenders, inputs, measure, network
from deltaw.families import sd

MOST = 2.0
"""1.3 on a machine of two cores; the rest is for busy ones."""


def test_a_step_costs_little_more_than_the_frozen_network() -> None:
    """The least of several alternating runs, since other programs can only add."""
    cpu = torch.device("cpu")
    limit = network("bundled", cpu, torch.float32)
    torch.manual_seed(0)
    asked = inputs(limit.config, 64, 4, cpu, torch.float32)
    steps = contenders(limit, asked, sd.StableDiffusion.targets, cpu, torch.float32, packed=False)
    seconds = measure({name: steps[name] for name in ("limit", "DeltaW")}, 7, cpu)
    assert min(seconds["DeltaW"]) / min(seconds["limit"]) < MOST
