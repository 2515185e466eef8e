"""What the parts of a run share: the base, the pictures, the plan, the folder, the clock, the listener."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import torch

from deltaw import device as devices
from deltaw import formats
from deltaw.data.folder import Dataset
from deltaw.events import Tell
from deltaw.families.base import Base
from deltaw.training.folder import RunFolder
from deltaw.training.outlook import Outlook
from deltaw.training.plan import Plan


@dataclass
class Clock:
    """Wall-clock seconds by phase."""

    seconds: dict[str, float] = field(default_factory=dict)

    @contextlib.contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Adds the time spent in the context to a phase."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - start


@dataclass(frozen=True)
class Session:
    """One run: everything that was settled before it and does not change in it.

    Args:
        base: opened.
        dataset: the pictures.
        plan: every value.
        folder: where everything goes.
        clock: seconds by phase.
        tell: hears events.
        device: where the networks run.
        dtype: of the frozen base.
        shapes: of the base's weights by canonical path.
        outlook: what was foretold.
    """

    base: Base
    dataset: Dataset
    plan: Plan
    folder: RunFolder
    clock: Clock
    tell: Tell
    device: torch.device
    dtype: torch.dtype
    shapes: Mapping[str, tuple[int, ...]]
    outlook: Outlook


def begin(
    base: Base, dataset: Dataset, plan: Plan, folder: RunFolder, clock: Clock, tell: Tell, outlook: Outlook
) -> Session:
    """The session of a made plan; it looks the device and the base's shapes up."""
    device, _ = devices.choose(plan.settings.device)
    dtype = getattr(torch, plan.settings.dtype)
    shapes = formats.shapes_of(base.folder.path)
    return Session(base, dataset, plan, folder, clock, tell, device, dtype, shapes, outlook)
