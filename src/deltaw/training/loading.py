"""A loaded network becomes one that is trained: adapters at their start, all their numbers in one buffer."""

from __future__ import annotations

import torch
from torch import nn

from deltaw import inject
from deltaw.data.feed import Feed
from deltaw.families import readers
from deltaw.families.base import Base, check_point
from deltaw.training.plan import Plan
from deltaw.training.stepping import Work, seeded
from deltaw.training.team import Team


def prepared(
    base: Base, network: nn.Module, data: Feed, made: Plan, device: torch.device, dtype: torch.dtype, team: Team | None = None
) -> tuple[Work, str]:  # fmt: skip
    """What the loop reads, the same in every process of a run; and why layers are not joined, as `readers.gather` says.

    Args:
        base: opened.
        network: its own, as loaded; changed in place.
        data: the pictures; empty where there are none to choose among.
        made: the plan.
        device: where the network is; `dtype`: that it computes in.
        team: the other processes, for the main one.
    """
    settings = made.settings
    if settings.checkpointing:
        check_point(network)
    wrapped = inject.wrap(network, settings.targets, settings.rank, settings.alpha, seeded(settings.seed, "init", 0))
    flat, why = readers.gather(network, wrapped, device, dtype)
    return Work(base, network, wrapped, flat, data, made, device, dtype, team), why
