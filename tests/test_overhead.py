"""The adapters' share of a step stays small: a ratio of two networks on the same work, not a time."""

from __future__ import annotations

import torch

from benchmarks.step_time import inputs, measure, network
from deltaw import inject
from deltaw.families import sd

MOST = 2.0
"""1.3 on a machine of two cores; the rest is for busy ones."""


def test_a_step_costs_little_more_than_the_frozen_network() -> None:
    """The least of several alternating runs, since other programs can only add."""
    limit, ours = (network("bundled", torch.device("cpu"), torch.float32) for _ in range(2))
    inject.wrap(ours, sd.StableDiffusion.targets, 8, 8.0, torch.Generator().manual_seed(0))
    torch.manual_seed(0)
    asked = inputs(limit.config, 64, 4, torch.device("cpu"), torch.float32)
    seconds = measure({"limit": limit, "DeltaW": ours}, asked, 7, lambda: None)
    assert min(seconds["DeltaW"]) / min(seconds["limit"]) < MOST
