"""What is wrong with a folder of a base that predicts a flow, whichever family it is of."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from deltaw.errors import InputError
from deltaw.families.faults import Configs

PATCH = 2
"""Latents along the side of a patch, which the transformer reads as one token."""
SCHEDULER = "FlowMatchEulerDiscreteScheduler"


def scheduler(path: Path, configs: Configs) -> Iterator[InputError]:
    """A scheduler that knows no flow."""
    kind = configs.get("scheduler", {}).get("_class_name", SCHEDULER)
    if kind != SCHEDULER:
        yield InputError(f"its scheduler is {kind}", where=path / "scheduler" / "scheduler_config.json", expected=SCHEDULER,
                         advice="take the scheduler's config from where the base was published")  # fmt: skip


def widths(path: Path, part: str, has: int | None, reads: int | None) -> Iterator[InputError]:
    """A text encoder whose vectors are not as wide as what the transformer reads; None where a config says nothing."""
    if has and reads and has != reads:
        yield InputError(f"the {part}'s vectors have {has} numbers and the transformer reads {reads}", where=path / part,
                         advice="take the text encoder that belongs to the base")  # fmt: skip


def other_kind(configs: Configs, kind: str) -> str:
    """What the network is where it is not of this kind, else ""."""
    found = str(configs.get("transformer", {}).get("_class_name", kind))
    return "" if found == kind else found
