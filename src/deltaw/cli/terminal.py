"""How events look: a live display on a terminal, plain lines elsewhere, JSON when asked."""

from __future__ import annotations

import json
import os
import sys
import threading
import time
from collections.abc import Callable
from typing import Protocol

from rich.console import Console, RenderableType
from rich.markup import escape
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Table as RichTable
from rich.text import Text

from deltaw.errors import plain
from deltaw.events import Event, Note, Phase, Saved, Step, Table, Tick, Warn, as_json

PLAIN_EVERY_S = 10.0
"""How often plain output reports a long phase: often enough to see life, seldom enough for a log."""
SILENCE_S = 25.0
"""After so long without a line, plain output names the phase that has nothing to say."""
DOUBT_S = 10.0
"""After so long without news, a live line says so: it moves all the time, so that alone means nothing."""
SMOOTHING = 0.95


SHOW_CURSOR = b"\x1b[?25h"
"""What a live display has to write before it may vanish."""


def silence(*descriptors: int) -> None:
    """Lets what is still written there go nowhere: the terminal or the reader is gone, the work goes on."""
    nowhere = os.open(os.devnull, os.O_RDWR)
    for descriptor in descriptors:
        os.dup2(nowhere, descriptor)
    os.close(nowhere)


class Enduring(Console):
    """A console that outlives its reader: `deltaw train … | head` trains to the end."""

    def on_broken_pipe(self) -> None:
        """Goes on in silence; rich's own way is to exit."""
        self.quiet = True
        silence(1)


class Display(Protocol):
    """A listener that must be closed."""

    def __call__(self, event: Event) -> None:
        """Shows the event."""
        ...

    def close(self) -> None:
        """Leaves the terminal as it was."""
        ...


def display(*, as_json_lines: bool) -> Display:
    """The display that suits where the output goes."""
    if as_json_lines:
        return Json()
    return Live(Enduring()) if sys.stdout.isatty() else Plain(Enduring(width=160, soft_wrap=True))


class Json:
    """One JSON object a line on standard output."""

    def __call__(self, event: Event) -> None:
        try:
            sys.stdout.write(json.dumps(as_json(event), default=str, ensure_ascii=False) + "\n")
            sys.stdout.flush()
        except BrokenPipeError:
            silence(1)

    def close(self) -> None:
        """Nothing to undo."""


class _Lines:
    """What both human displays share: notes, warnings, tables, saved files."""

    def __init__(self, console: Console):
        self.console = console
        self.loss: float | None = None

    def show(self, event: Event) -> None:
        match event:
            case Note(text):
                self.console.print(shown(text), highlight=False)
            case Warn(text):
                self.console.print(f"[yellow]warning:[/] {shown(text)}", highlight=False)
            case Saved(path, n_bytes, what):
                self.console.print(f"[green]saved[/] {shown(path)} ({what}, {size(n_bytes)})", highlight=False)
            case Table():
                self.console.print(_table(event))
            case _:
                pass

    def smooth(self, loss: float) -> float:
        """An exponential mean of the loss, for reading a trend out of noise."""
        self.loss = loss if self.loss is None else SMOOTHING * self.loss + (1 - SMOOTHING) * loss
        return self.loss

    def step_text(self, event: Step) -> str:
        """Loss, speed and memory of a step."""
        return f"loss {self.smooth(event.loss):.4f}  {event.steps_per_s:.2f} steps/s  {event.rss_bytes / 1e9:.1f} GB"


class _IfCounted(ProgressColumn):
    """A column that stays empty in phases whose length is not known."""

    def __init__(self, column: ProgressColumn):
        super().__init__()
        self.column = column

    def render(self, task: Task) -> RenderableType:
        return self.column(task) if task.total else Text()


class _Silence(ProgressColumn):
    """Says for how long a phase has had no news, once that is worth a doubt."""

    def __init__(self) -> None:
        super().__init__()
        self.heard = time.monotonic()

    def render(self, task: Task) -> Text:  # noqa: ARG002
        silent_s = time.monotonic() - self.heard
        return Text(f"no news for {duration(silent_s)}" if silent_s > DOUBT_S else "", style="yellow")


class Live(_Lines):
    """A live line with phase, bar, loss, speed, memory and time; notes scroll above it.

    It is there from the start, since loading torch takes seconds, and a thread of its own moves it.
    """

    def __init__(self, console: Console):
        super().__init__(console)
        self.silence = _Silence()
        columns = (
            TextColumn("{task.description}"),
            BarColumn(24),
            _IfCounted(MofNCompleteColumn()),
            TextColumn("{task.fields[detail]}"),
            TimeElapsedColumn(),
            _IfCounted(TimeRemainingColumn(compact=True)),
            self.silence,
        )
        self.progress = Progress(*columns, console=console, transient=True)
        self.progress.start()
        self.task = self._phase(Phase("start"))

    def _phase(self, phase: Phase) -> TaskID:
        return self.progress.add_task(phase.name, total=phase.total, detail="")

    def __call__(self, event: Event) -> None:
        self.silence.heard = time.monotonic()
        match event:
            case Phase():
                self.progress.remove_task(self.task)
                self.task = self._phase(event)
            case Tick(done, detail):
                self.progress.update(self.task, completed=done, detail=shown(detail[:40]))
            case Step():
                self.progress.update(self.task, completed=event.step, detail=self.step_text(event))
            case _:
                self.show(event)

    def close(self) -> None:
        self.progress.stop()


class Heartbeat:
    """A thread that calls `beat` every second until it is closed, whatever the rest is busy with."""

    def __init__(self, beat: Callable[[], None]):
        self._beat = beat
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._run, name="heartbeat", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        while not self._closed.wait(1.0):
            self._beat()

    def close(self) -> None:
        """Ends the thread."""
        self._closed.set()
        self._thread.join()


class Plain(_Lines):
    """Lines for a log: every phase once, then its progress every few seconds; a phase that hangs is named."""

    def __init__(self, console: Console):
        super().__init__(console)
        self.phase = Phase("start")
        self.said = self.heard = time.monotonic()
        self.heartbeat = Heartbeat(self._name_what_hangs)

    def __call__(self, event: Event) -> None:
        self.heard = time.monotonic()
        match event:
            case Phase(name, total, unit):
                self.phase, self.said = event, self.heard
                self.console.print(f"{shown(name)}{f' ({counted(total, unit)})' if total else ''} …", highlight=False)
            case Tick(done, _):
                if self._due(done):
                    total = counted(self.phase.total, self.phase.unit) if self.phase.total else self.phase.unit
                    self.console.print(f"  {done} of {total}", highlight=False)
            case Step():
                text = self.step_text(event)
                left = (event.n_steps - event.step) / event.steps_per_s if event.steps_per_s > 0 else 0.0
                if self._due(event.step):
                    line = f"  step {event.step} of {event.n_steps}  {text}  {duration(left)} left"
                    self.console.print(line, highlight=False)
            case _:
                self.said = self.heard
                self.show(event)

    def _name_what_hangs(self) -> None:
        now = time.monotonic()
        if now - self.said >= SILENCE_S:
            self.said = now
            line = f"  still at: {shown(self.phase.name)}; no news for {duration(now - self.heard)}"
            self.console.print(line, highlight=False)

    def _due(self, done: int) -> bool:
        now = time.monotonic()
        if now - self.said < PLAIN_EVERY_S and done != self.phase.total:
            return False
        self.said = now
        return True

    def close(self) -> None:
        self.heartbeat.close()


def _table(event: Table) -> RichTable:
    table = RichTable(*event.columns, title=event.title, title_justify="left", box=None, pad_edge=False)
    for row in event.rows:
        table.add_row(*(shown(cell) for cell in row))
    return table


def shown(text: str) -> str:
    """Text of an event as it may be printed: file names and metadata in it neither style nor steer the terminal."""
    return escape(plain(text))


def counted(n: int, unit: str) -> str:
    """A number with its unit, which is given in the plural."""
    return f"{n} {unit.removesuffix('s') if n == 1 else unit}"


def size(n_bytes: int) -> str:
    """Bytes as people write them."""
    return f"{n_bytes / 1e6:.2f} MB" if n_bytes >= 1e5 else f"{n_bytes / 1e3:.1f} kB"


def duration(seconds: float) -> str:
    """Seconds as m:ss or h:mm:ss; never negative."""
    whole = max(0, round(seconds))
    hours, rest = divmod(whole, 3600)
    return f"{hours}:{rest // 60:02d}:{rest % 60:02d}" if hours else f"{rest // 60}:{rest % 60:02d}"
