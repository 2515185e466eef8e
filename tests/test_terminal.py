"""No silence: what stands on a terminal moves all the time, and plain output names what hangs."""

from __future__ import annotations

import io
import itertools
import os
import pty
import re
import select
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from rich.console import Console

from deltaw.cli import terminal
from deltaw.events import Note, Phase, Step, Table

PROMISE_S = 2.0
BUSY = 2.5
"""Tests may run beside others on a busy machine; on an idle one the promise itself holds."""


def on_a_terminal(code: str, *words: object) -> tuple[list[tuple[float, str]], int]:
    """Runs Python code whose output is a terminal; gives (seconds since start, text) of everything it wrote."""
    ours, theirs = pty.openpty()
    environment = {**os.environ, "TERM": "xterm", "COLUMNS": "120", "LINES": "40"}
    started = time.monotonic()
    process = subprocess.Popen(
        [sys.executable, "-c", code, *map(str, words)], stdin=theirs, stdout=theirs, stderr=theirs, env=environment
    )
    os.close(theirs)
    said: list[tuple[float, str]] = []
    while True:
        ready, _, _ = select.select([ours], [], [], 60)
        assert ready, "nothing for a minute"
        try:
            raw = os.read(ours, 65536)
        except OSError:  # the other end is closed: the program has ended
            break
        if not raw:
            break
        said.append((time.monotonic() - started, raw.decode(errors="replace")))
    os.close(ours)
    return said, process.wait()


def longest_silence(said: list[tuple[float, str]]) -> tuple[float, str]:
    """The longest time without output, and what stood there meanwhile; the start of Python itself is left out."""
    gaps = [(b[0] - a[0], a[1]) for a, b in itertools.pairwise(said)]
    return max(gaps)


SLEEPY = """
import time
from deltaw.cli import terminal
from deltaw.events import Phase
terminal.DOUBT_S = 1.0
show = terminal.display(as_json_lines=False)
show(Phase("prove the file"))
time.sleep(4)
show.close()
"""


def test_a_phase_that_hangs_moves_and_is_doubted() -> None:
    said, code = on_a_terminal(SLEEPY)
    text = "".join(t for _, t in said)
    assert code == 0
    assert longest_silence(said)[0] < PROMISE_S
    assert "prove the file" in text
    assert "no news for 0:02" in text
    assert not re.search(r"-\d+:", text), "no negative time"


def test_no_phase_of_a_run_is_silent(pictures: Callable[..., Path], tiny_base: Path, tmp_path: Path) -> None:
    said, code = on_a_terminal(
        "from deltaw.cli import main; main()", "train", pictures(9), "--base", tiny_base, "--out", tmp_path / "out",
        "--steps", "40", "--rank", "2", "--set", "sample_steps=4",
    )  # fmt: skip
    assert code == 0
    gap, during = longest_silence(said)
    assert gap < PROMISE_S * BUSY, during
    text = "".join(t for _, t in said)
    for phase in ("start", "load the base", "write and prove", "draw the contact sheet"):
        assert phase in text


def test_plain_output_names_what_hangs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(terminal, "SILENCE_S", 1.5)
    written = io.StringIO()
    show = terminal.Plain(Console(file=written, width=160))
    show(Phase("encode pictures", 9, "pictures"))
    time.sleep(3.2)
    show(Note("one"))
    show.close()
    time.sleep(1.2)
    lines = written.getvalue().splitlines()
    assert [line for line in lines if line.startswith("  still at: encode pictures; no news for 0:0")]
    assert lines[-1] == "one", "a closed display is quiet"


def test_time_left_is_never_negative() -> None:
    assert terminal.duration(-5) == "0:00"
    written = io.StringIO()
    show = terminal.Plain(Console(file=written, width=160))
    show(Phase("train", 3, "steps"))
    show(Step(3, 3, 0.1, 1e-3, -1.0, 0))
    show.close()
    assert "0:00 left" in written.getvalue()


def test_names_do_not_steer_the_terminal() -> None:
    said = io.StringIO()
    shown = terminal.Plain(Console(file=said, width=120))
    try:
        shown(Note("skipped \x1b[2Jcat.png [red]not red[/]"))
        shown(Table("found", ("name",), (("\x1b]0;title\x07dog.png",),)))
    finally:
        shown.close()
    assert "\x1b" not in said.getvalue()
    assert r"\x1b[2Jcat.png [red]not red[/]" in said.getvalue()
    assert r"\x1b]0;title\x07dog.png" in said.getvalue()
