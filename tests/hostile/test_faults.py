"""Rows 16 and 33-35 of the bad inputs: full disks, read-only folders, kills, a second process, lost pictures."""

from __future__ import annotations

import contextlib
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import filelock
import pytest

import deltaw
from deltaw import tensorfile
from deltaw.errors import DeltawError, InputError, UsageError
from deltaw.events import Event, Step

SETTINGS = ("sample_steps=1", "snapshots=3", 'prompts=["a house"]', "dtype=float32")
OPTIONS = {"steps": 6, "batch": 2, "rank": 2, "lr": 1e-2}
SERVER = f"""
import os, pathlib, sys, deltaw

def run(out, drawn=True):
    def tell(event):
        if not drawn and getattr(event, "name", "").startswith("draw"):
            os._exit(0)

    out = pathlib.Path(out)
    deltaw.train(sys.argv[1], base=sys.argv[2], out=out, resume=(out / "state" / "state.safetensors").is_file() or None,
                 settings={SETTINGS!r}, tell=tell, **{OPTIONS!r})

run(sys.argv[3])  # everything is imported and cached from here on
print("ready", flush=True)
for line in sys.stdin:
    child = os.fork()
    if child == 0:
        run(line.strip().removeprefix("finish "), drawn=not line.startswith("finish "))
        os._exit(0)
    print(child, flush=True)
    print(os.waitpid(child, 0)[1], flush=True)
"""
"""A process that forks a run for every line it reads, so that a hundred runs need not import torch a hundred times.

A run that only has to finish what a killed one began ends with the proved file, before the sheet.
"""


def train(folder: Path, base: Path, out: Path, tell: Callable[[Event], None] = lambda _: None) -> deltaw.Report:
    return deltaw.train(folder, base=str(base), out=out, settings=SETTINGS, tell=tell, **OPTIONS)


class Server:
    """Runs in processes of their own that can be killed."""

    def __init__(self, folder: Path, base: Path, first: Path):
        self.process = subprocess.Popen(
            [sys.executable, "-c", SERVER, str(folder), str(base), str(first)], stdin=subprocess.PIPE,
            stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        self._read()

    def run(self, out: Path | str, kill_after_s: float | None = None) -> tuple[int, float]:
        """Exit status (negative: the signal) and seconds of a run into `out`, or of "finish OUT"."""
        start = time.perf_counter()
        assert self.process.stdin is not None
        self.process.stdin.write(f"{out}\n")
        self.process.stdin.flush()
        child = int(self._read())
        if kill_after_s is not None:
            time.sleep(kill_after_s)
            with contextlib.suppress(ProcessLookupError):
                os.kill(child, signal.SIGKILL)
        return os.waitstatus_to_exitcode(int(self._read())), time.perf_counter() - start

    def _read(self) -> str:
        assert self.process.stdout is not None
        line = self.process.stdout.readline().strip()
        assert line, "the server ended"
        return line

    def close(self) -> None:
        """Ends the process."""
        self.process.communicate()


@pytest.mark.parametrize("n", [pytest.param(4, id="4"), pytest.param(100, id="100", marks=pytest.mark.slow)])
def test_row_34_a_kill_at_any_moment_costs_nothing(
    pictures: Callable[..., Path], tiny_base: Path, tmp_path: Path, n: int
) -> None:
    server = Server(pictures(9), tiny_base, tmp_path / "first")
    code, length_s = server.run(tmp_path / "whole")
    whole = (tmp_path / "whole" / "blocks.safetensors").read_bytes()
    assert code == 0
    moments = random.Random(0)
    states = {"no save": 0, "saved": 0, "finished": 0}
    for i in range(n):
        out, wait_s = tmp_path / f"k{i}", moments.uniform(0, length_s)
        code, _ = server.run(out, wait_s)
        for file in out.rglob("*.safetensors"):
            if not file.name.startswith("."):
                tensorfile.read(file)  # whatever has its final name is whole
        saved = (out / "state" / "state.safetensors").is_file()
        states["finished" if code == 0 else "saved" if saved else "no save"] += 1
        code, _ = server.run(f"finish {out}")
        assert code == 0, wait_s
        assert (out / "blocks.safetensors").read_bytes() == whole, wait_s
        shutil.rmtree(out)
    server.close()
    print(states, f"a run takes {length_s:.2f} s")


def test_row_34_a_second_process_is_kept_out(pictures: Callable[..., Path], tiny_base: Path, tmp_path: Path) -> None:
    (tmp_path / "out" / "state").mkdir(parents=True)
    (tmp_path / "out" / "state" / "state.safetensors").touch()
    with filelock.FileLock(tmp_path / "out" / "state" / "lock"), pytest.raises(UsageError, match="another process"):
        deltaw.train(pictures(3), base=str(tiny_base), out=tmp_path / "out", resume=True)


def test_row_33_a_full_disk_leaves_what_was_saved(
    pictures: Callable[..., Path], tiny_base: Path, tmp_path: Path
) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    ignored = signal.signal(
        signal.SIGXFSZ, signal.SIG_IGN
    )  # a write then fails with EFBIG, as on a full disk with ENOSPC
    seen: list[int] = []

    def fill_up(event: Event) -> None:
        if isinstance(event, Step):
            seen.append(event.step)
            if event.step == 3:
                resource.setrlimit(resource.RLIMIT_FSIZE, (4096, hard))

    try:
        with pytest.raises((DeltawError, OSError)) as caught:
            train(pictures(9), tiny_base, tmp_path / "out", fill_up)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, ignored)
    assert isinstance(caught.value, DeltawError), "the message is ours"
    assert "writing failed" in str(caught.value)
    assert [p.name for p in (tmp_path / "out" / "snapshots").iterdir()] == ["blocks-000002.safetensors"]
    resumed = deltaw.train(tmp_path / "blocks", out=tmp_path / "out", resume=True)
    assert resumed.file.read_bytes() == train(tmp_path / "blocks", tiny_base, tmp_path / "whole").file.read_bytes()


def test_row_33_a_folder_that_cannot_be_made_is_named(
    pictures: Callable[..., Path], tiny_base: Path, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(InputError, match="cannot be made"):
        train(pictures(3), tiny_base, tmp_path / "file" / "out")


def test_row_15_a_picture_that_vanishes_is_named(
    pictures: Callable[..., Path], tiny_base: Path, tmp_path: Path
) -> None:
    folder = pictures(3)
    gone = folder / "p01.png"

    def remove(event: Event) -> None:
        if type(event).__name__ == "Table" and gone.exists():
            gone.unlink()

    os.environ["DELTAW_CACHE"] = str(tmp_path / "cold")
    with pytest.raises(InputError, match=r"p01\.png"):
        train(folder, tiny_base, tmp_path / "out", remove)


def test_row_16_the_pictures_folder_is_never_written_to(
    pictures: Callable[..., Path], tiny_base: Path, tmp_path: Path
) -> None:
    folder = pictures(3)
    before = {p.name: p.read_bytes() for p in folder.iterdir()}
    train(folder, tiny_base, tmp_path / "out")
    assert {p.name: p.read_bytes() for p in folder.iterdir()} == before


def test_row_16_own_results_inside_the_pictures_are_not_trained_on(
    pictures: Callable[..., Path], tiny_base: Path
) -> None:
    folder = pictures(3)
    one = train(folder, tiny_base, folder / "run")
    heard: list[Event] = []
    deltaw.train(folder, base=str(tiny_base), out=folder / "run", resume=True, tell=heard.append)
    assert one.file.is_file()
    assert any("3 found" in getattr(e, "text", "") for e in heard)
