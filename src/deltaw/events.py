"""How a verb speaks: it tells events to whoever listens and prints nothing itself.

Every verb takes `tell: Tell`. The command draws the events (live, as plain lines or as JSON), the
train loop also writes them to `events.jsonl`, and the library's default listens to none.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Phase:
    """Work that may take longer than a moment begins. `total` is None where it cannot be counted."""

    name: str
    total: int | None = None
    unit: str = ""


@dataclass(frozen=True)
class Tick:
    """The current phase has done `done` of its total."""

    done: int
    detail: str = ""


@dataclass(frozen=True)
class Step:
    """One optimizer step, counted from 1. `loss` is the objective's, `lr` the rate it was taken with."""

    step: int
    n_steps: int
    loss: float
    lr: float
    steps_per_s: float
    rss_bytes: int
    extra: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Note:
    """A fact that the user should know; nothing is wrong."""

    text: str


@dataclass(frozen=True)
class Warn:
    """Something that may not be what the user wanted; `--strict` may turn it into an error."""

    text: str


@dataclass(frozen=True)
class Table:
    """Rows for a person: the plan, a report. Every row has as many cells as `columns`."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


@dataclass(frozen=True)
class Saved:
    """A file stands complete under its final name."""

    path: str
    n_bytes: int
    what: str = ""


Event = Phase | Tick | Step | Note | Warn | Table | Saved
Tell = Callable[[Event], None]


def silent(event: Event) -> None:
    """The listener that listens to nothing."""


def as_json(event: Event) -> dict[str, Any]:
    """The event as a JSON object whose `event` names its kind in lower case."""
    return {"event": type(event).__name__.lower(), **event.__dict__}
