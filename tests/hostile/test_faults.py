"""Rows 16 and 33-35 of the bad inputs: full disks, read-only folders, kills, a second process, lost pictures."""

from __future__ import annotations

import os
import random
import resource
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

SETTINGS = ("sample_steps=1", "snapshots=6", 'prompts=["a house"]', "dtype=float32")
OPTIONS = {"steps": 12, "batch": 2, "rank": 2, "lr": 1e-2}
RUN = f"""
import sys, pathlib, deltaw
out = pathlib.Path(sys.argv[3])
deltaw.train(sys.argv[1], base=sys.argv[2], out=out, resume=(out / "state" / "state.safetensors").is_file() or None,
    settings={SETTINGS!r}, tell=lambda e: print(type(e).__name__, flush=True), **{OPTIONS!r})
"""


def train(folder: Path, base: Path, out: Path, tell: Callable[[Event], None] = lambda _: None) -> deltaw.Report:
    return deltaw.train(folder, base=str(base), out=out, settings=SETTINGS, tell=tell, **OPTIONS)


def _killed_and_resumed(folder: Path, base: Path, out: Path, wait_s: float) -> bytes:
    """Kills the run at a moment counted from its first step, checks what it left, and lets a second finish it."""
    command = [sys.executable, "-c", RUN, str(folder), str(base), str(out)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, stderr=subprocess.DEVNULL)
    assert process.stdout is not None
    for line in process.stdout:
        if line.strip() == "Step":
            break
    time.sleep(wait_s)
    process.kill()
    process.wait()
    process.stdout.close()
    for file in (*out.glob("snapshots/*.safetensors"), *out.glob("*.safetensors"), *out.glob("state/*.safetensors")):
        tensorfile.read(file)  # whatever has its final name is whole
    if not (out / "state" / "state.safetensors").is_file():
        for name in ("run.toml", "events.jsonl"):
            (out / name).unlink(missing_ok=True)
        subprocess.run(["rm", "-rf", str(out)], check=True)
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return (out / "blocks.safetensors").read_bytes()


@pytest.mark.parametrize("n", [pytest.param(3, id="3"), pytest.param(100, id="100", marks=pytest.mark.slow)])
def test_row_34_a_kill_at_any_moment_costs_nothing(
    pictures: Callable[..., Path], tiny_base: Path, tmp_path: Path, n: int
) -> None:
    folder = pictures(9)
    start = time.perf_counter()
    first: list[float] = []
    whole = train(
        folder,
        tiny_base,
        tmp_path / "whole",
        lambda e: first.append(time.perf_counter()) if isinstance(e, Step) else None,
    )
    length_s = time.perf_counter() - first[0]
    assert start < first[0]
    moments = random.Random(0)
    for i in range(n):
        wait_s = moments.uniform(0, length_s)
        assert _killed_and_resumed(folder, tiny_base, tmp_path / f"k{i}", wait_s) == whole.file.read_bytes(), wait_s


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
