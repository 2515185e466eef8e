"""Rows 16 and 33-36 of the bad inputs: what disks, signals, people and memory do to a run."""

from __future__ import annotations

import contextlib
import errno
import itertools
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

import deltaw
from deltaw import tensorfile
from deltaw.errors import EXIT_INTERRUPTED, DeltawError, InputError, UsageError
from deltaw.events import Event, Note, Phase, Saved, Step, Table, Warn
from deltaw.training import stepping
from deltaw.training.stepping import Batch, Work

SETTINGS = ("sample_steps=1", "snapshots=2", 'prompts=["a house"]', "dtype=float32")
OPTIONS = {"steps": 4, "batch": 2, "rank": 2, "lr": 1e-2}
Folder = Callable[..., Path]


def train(folder: Path, base: Path, out: Path, *settings: str, tell: Callable[[Event], None] = lambda _: None, **more: object) -> deltaw.Report:  # fmt: skip
    return deltaw.train(folder, base=str(base), out=out, settings=(*SETTINGS, *settings), tell=tell, **{**OPTIONS, **more})  # fmt: skip


@contextlib.contextmanager
def small_files() -> Iterator[Callable[[], None]]:
    """Gives a switch after which a write beyond 4 kB fails, as on a full disk (EFBIG in place of ENOSPC)."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        yield lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (4096, hard))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, ignored)


@pytest.mark.parametrize(
    ("when", "named", "kept"),
    [
        (lambda e: isinstance(e, Phase) and e.name == "encode pictures", "the cache cannot be written", False),
        (lambda e: isinstance(e, Phase) and e.name.startswith("draw"), "sheet.png", True),
        (lambda e: isinstance(e, Saved) and e.path.endswith("sheet.png"), "report.html", True),
    ],
    ids=["cache", "sheet", "report"],
)
def test_row_33_a_full_disk_is_named_and_what_is_done_stays(
    pictures: Folder, tiny_base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, when: Callable[[Event], bool],
    named: str, kept: bool,
) -> None:  # fmt: skip
    monkeypatch.setenv("DELTAW_CACHE", str(tmp_path / "cold"))
    with small_files() as fill, pytest.raises(DeltawError, match=named) as caught:
        train(pictures(9), tiny_base, tmp_path / "out", tell=lambda e: fill() if when(e) else None)
    assert "File too large" in str(caught.value)
    assert "free some space" in caught.value.advice
    assert (tmp_path / "out" / "blocks.safetensors").is_file() == kept
    assert not list(tmp_path.rglob("*.part"))


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full")
def test_row_33_a_log_that_cannot_be_written_is_said_once_and_costs_nothing(
    pictures: Folder, tiny_base: Path, tmp_path: Path
) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "events.jsonl").symlink_to("/dev/full")
    heard: list[Event] = []
    report = train(pictures(3), tiny_base, tmp_path / "out", tell=heard.append)
    assert report.file.is_file()
    (warning,) = [e.text for e in heard if isinstance(e, Warn) and "events.jsonl" in e.text]
    assert "No space left on device" in warning


def test_row_33_a_read_only_place_is_named(
    pictures: Folder, tiny_base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    folder = pictures(3)
    with monkeypatch.context() as patch:
        patch.setattr(os, "mkdir", refuse)
        with pytest.raises(InputError, match="cannot be made \\(Read-only file system\\)"):
            train(folder, tiny_base, tmp_path / "new")

    def turn(event: Event) -> None:
        if isinstance(event, Step) and event.step == 3:
            monkeypatch.setattr("deltaw.atomic.tempfile.mkstemp", refuse)

    with pytest.raises(DeltawError, match="cannot write here \\(Read-only file system\\)"):
        train(folder, tiny_base, tmp_path / "out", tell=turn)
    assert (tmp_path / "out" / "snapshots" / "blocks-000002.safetensors").is_file()


def test_row_33_files_are_never_renamed_across_devices(pictures: Folder, tiny_base: Path, tmp_path: Path) -> None:
    other = Path("/dev/shm")
    if not other.is_dir() or other.stat().st_dev == tmp_path.stat().st_dev:
        pytest.skip("no second file system")
    there = other / f"deltaw-{os.getpid()}"
    there.mkdir()
    try:
        (tmp_path / "out").symlink_to(there)
        assert train(pictures(3), tiny_base, tmp_path / "out").file.is_file()
        assert (there / "blocks.safetensors").is_file()
    finally:
        shutil.rmtree(there)


RUN = """
import sys
sys.argv = ["deltaw", "train", *sys.argv[1:]]
from deltaw.cli import main
main()
"""


def started(folder: Path, base: Path, out: Path) -> subprocess.Popen[str]:
    """A run of many steps that has done three and saved the second."""
    words = [
        "--base",
        base,
        "--out",
        out,
        "--steps",
        "5000",
        "--rank",
        "2",
        "--json",
        "--no-stop",
        "--set",
        "snapshots=2500",
    ]
    process = subprocess.Popen(
        [sys.executable, "-c", RUN, str(folder), *map(str, words)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )  # fmt: skip
    assert process.stdout is not None
    for line in process.stdout:
        if json.loads(line).get("step") == 3:
            return process
    raise AssertionError(process.stderr.read() if process.stderr else "")


def test_row_34_ctrl_c_twice_gives_up_and_leaves_whole_files(pictures: Folder, tiny_base: Path, tmp_path: Path) -> None:
    process = started(pictures(3), tiny_base, tmp_path / "out")
    process.send_signal(signal.SIGINT)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=300)
    assert process.returncode == EXIT_INTERRUPTED
    assert "Ctrl+C again gives up" in err
    assert "Traceback" not in err
    for file in (tmp_path / "out").rglob("*.safetensors"):
        tensorfile.read(file)


def test_row_34_a_closed_terminal_saves_the_run(pictures: Folder, tiny_base: Path, tmp_path: Path) -> None:
    process = started(pictures(3), tiny_base, tmp_path / "out")
    process.send_signal(signal.SIGHUP)
    process.communicate(timeout=300)
    assert process.returncode == EXIT_INTERRUPTED
    lines = [json.loads(line) for line in (tmp_path / "out" / "events.jsonl").read_text().splitlines()]
    last = max(line["step"] for line in lines if line["event"] == "step")
    assert (tmp_path / "out" / "snapshots" / f"blocks-{last:06d}.safetensors").is_file()


def test_row_34_a_reader_that_leaves_does_not_end_the_run(pictures: Folder, tiny_base: Path, tmp_path: Path) -> None:
    words = ["--base", tiny_base, "--out", tmp_path / "out", "--steps", "4", "--rank", "2", "--set", "sample_steps=1"]
    command = [sys.executable, "-c", RUN, str(pictures(3)), *map(str, words)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None
    process.stdout.readline()
    process.stdout.close()
    assert process.stderr is not None
    said = process.stderr.read()
    process.stderr.close()
    assert process.wait(timeout=300) == 0, said
    assert (tmp_path / "out" / "blocks.safetensors").is_file()


HOLD = """
import sys, time, filelock
lock = filelock.FileLock(sys.argv[1])
lock.acquire()
print("held", flush=True)
time.sleep(60)
"""


def test_row_34_the_lock_of_a_dead_process_is_free(pictures: Folder, tiny_base: Path, tmp_path: Path) -> None:
    lock = tmp_path / "out" / "state" / "lock"
    lock.parent.mkdir(parents=True)
    holder = subprocess.Popen([sys.executable, "-c", HOLD, str(lock)], stdout=subprocess.PIPE, text=True)
    assert holder.stdout is not None
    holder.stdout.readline()
    with pytest.raises(UsageError, match="another process is training into this folder"):
        train(pictures(3), tiny_base, tmp_path / "out")
    holder.kill()
    holder.wait()
    holder.stdout.close()
    assert lock.exists()
    assert train(tmp_path / "blocks", tiny_base, tmp_path / "out").file.is_file()


def test_row_34_a_run_killed_within_its_first_save_can_be_started_again(
    pictures: Folder, tiny_base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The snapshot is there and the state is not."""
    whole = train(pictures(3), tiny_base, tmp_path / "whole").file.read_bytes()

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("deltaw.training.keeping.state.save", killed)
        with pytest.raises(KeyboardInterrupt):
            train(tmp_path / "blocks", tiny_base, tmp_path / "out")
    assert list((tmp_path / "out" / "snapshots").iterdir())
    assert train(tmp_path / "blocks", tiny_base, tmp_path / "out").file.read_bytes() == whole


def test_row_34_snapshots_of_a_run_whose_state_was_removed_are_left_alone(
    pictures: Folder, tiny_base: Path, tmp_path: Path
) -> None:
    report = train(pictures(3), tiny_base, tmp_path / "out")
    shutil.rmtree(tmp_path / "out" / "state")
    report.file.unlink()
    with pytest.raises(UsageError, match="not empty"):
        train(tmp_path / "blocks", tiny_base, tmp_path / "out")


def test_row_34_what_a_killed_process_was_writing_is_removed(pictures: Folder, tiny_base: Path, tmp_path: Path) -> None:
    state = tmp_path / "out" / "state"
    state.mkdir(parents=True)
    (state / ".state.safetensors.abc.part").write_bytes(b"half")
    (tmp_path / "out" / ".run.toml.abc.part").write_bytes(b"half")
    (tmp_path / "out" / "events.jsonl").write_text('{"event": "ste')
    with pytest.raises(InputError, match="ended before its first save"):
        train(pictures(3), tiny_base, tmp_path / "out", resume=True)
    train(tmp_path / "blocks", tiny_base, tmp_path / "out")
    assert not list((tmp_path / "out").rglob(".*.part"))
    lines = (tmp_path / "out" / "events.jsonl").read_text().splitlines()
    assert all(json.loads(line) for line in lines[1:]), "a torn line spoils no other"


CHANGES = {
    "images": (lambda f, paint: paint(f / "p01.png", 77), {}, "the picture of p01.png is another"),
    "a new image": (lambda f, paint: paint(f / "p09.png", 9, (64, 64), "new"), {}, "p09.png is new"),
    "captions": (lambda f, paint: (f / "p00.txt").write_text("else"), {}, "the caption of p00.png is another"),
    "rank": (lambda f, paint: None, {"rank": 4}, "rank: was 2, is 4"),
    "seed": (lambda f, paint: None, {"seed": 5}, "seed: was 0, is 5"),
    "dtype": (lambda f, paint: None, {"settings": ("dtype=bfloat16",)}, "dtype: was float32, is bfloat16"),
}


@pytest.mark.parametrize("change", CHANGES)
def test_row_35_a_difference_is_named(
    pictures: Folder, paint: Folder, tiny_base: Path, tmp_path: Path, change: str
) -> None:
    folder = pictures(3)
    train(folder, tiny_base, tmp_path / "out")
    config = (tmp_path / "out" / "run.toml").read_text()
    act, options, named = CHANGES[change]
    act(folder, paint)
    with pytest.raises(UsageError, match="the run in --out was another one") as caught:
        deltaw.train(folder, out=tmp_path / "out", resume=True, **options)
    assert named in str(caught.value)
    assert "resume_anyway" in caught.value.advice
    assert (tmp_path / "out" / "run.toml").read_text() == config, "a refused run leaves the settings alone"


def test_row_35_another_base_or_version_is_named(
    pictures: Folder, tiny_base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = pictures(3)
    train(folder, tiny_base, tmp_path / "out")
    other = tmp_path / "other-base"
    shutil.copytree(tiny_base, other)
    config = json.loads((other / "vae" / "config.json").read_text())
    (other / "vae" / "config.json").write_text(json.dumps({**config, "scaling_factor": 0.5}))
    with pytest.raises(UsageError, match="base vae: was"):
        deltaw.train(folder, base=str(other), out=tmp_path / "out", resume=True)
    monkeypatch.setattr("deltaw.training.fingerprint.VERSION", "9.9.9")
    with pytest.raises(UsageError, match=r"version of deltaw: was .*, is 9\.9\.9"):
        deltaw.train(folder, out=tmp_path / "out", resume=True)


def test_row_35_a_choice_goes_on_all_the_same_and_says_so(pictures: Folder, tiny_base: Path, tmp_path: Path) -> None:
    folder = pictures(3)
    train(folder, tiny_base, tmp_path / "out")
    (folder / "p00.txt").write_text("else")
    heard: list[Event] = []
    report = deltaw.train(folder, out=tmp_path / "out", resume=True, steps=6, settings=["resume_anyway=true"], tell=heard.append)  # fmt: skip
    said = [e.text for e in heard if isinstance(e, Warn | Note)]
    assert any("resumed all the same: the caption of p00.png" in text for text in said)
    assert any("resumed all the same: steps: was 4, is 6" in text for text in said)
    assert [e.step for e in heard if isinstance(e, Step)] == [5, 6]
    assert report.file.is_file()


def test_row_35_another_rank_cannot_go_on(pictures: Folder, tiny_base: Path, tmp_path: Path) -> None:
    train(pictures(3), tiny_base, tmp_path / "out")
    with pytest.raises(UsageError, match="the saved adapter does not fit"):
        deltaw.train(tmp_path / "blocks", out=tmp_path / "out", resume=True, rank=4, settings=["resume_anyway=true"])


def test_row_35_a_state_of_a_newer_version_is_refused(pictures: Folder, tiny_base: Path, tmp_path: Path) -> None:
    train(pictures(3), tiny_base, tmp_path / "out")
    path = tmp_path / "out" / "state" / "state.safetensors"
    tensors, about = tensorfile.read(path), json.loads(tensorfile.read_header(path).metadata["deltaw.state"])
    tensorfile.write(path, tensors, {"deltaw.state": json.dumps({**about, "format": about["format"] + 1})})
    with pytest.raises(InputError, match="the state has format") as caught:
        deltaw.train(tmp_path / "blocks", out=tmp_path / "out", resume=True, settings=["resume_anyway=true"])
    assert "the DeltaW that wrote it" in caught.value.advice


@pytest.mark.parametrize("kind", ["allocator", "python", "device"])
def test_row_36_memory_that_runs_out_is_named_and_the_save_kept(
    pictures: Folder, tiny_base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    original, asked = stepping.objective_loss, itertools.count(1)

    def hungry(work: Work, there: Batch) -> torch.Tensor:
        if next(asked) == 3:
            if kind == "allocator":
                torch.empty(1 << 55)
            raise (
                MemoryError
                if kind == "python"
                else torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")
            )
        return original(work, there)

    monkeypatch.setattr(stepping, "objective_loss", hungry)
    with pytest.raises(DeltawError, match="memory ran out") as caught:
        train(pictures(3), tiny_base, tmp_path / "out")
    assert "take --set micro_batch=1" in caught.value.advice
    assert "step 2 is saved: --resume" in caught.value.advice
    monkeypatch.setattr(stepping, "objective_loss", original)
    assert deltaw.train(tmp_path / "blocks", out=tmp_path / "out", resume=True).file.is_file()


def test_row_36_an_error_that_is_none_of_memory_stays_what_it_is(
    pictures: Folder, tiny_base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def mistaken(*_: object) -> torch.Tensor:
        return torch.ones(2, 3) @ torch.ones(2, 3)

    monkeypatch.setattr(stepping, "objective_loss", mistaken)
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        train(pictures(3), tiny_base, tmp_path / "out")


def test_row_36_durations_come_from_clocks_that_cannot_jump() -> None:
    package = Path(deltaw.__file__).parent
    assert not [path.name for path in package.rglob("*.py") if "time.time()" in path.read_text(encoding="utf-8")]


def test_row_16_a_picture_edited_before_it_is_read_is_named(
    pictures: Folder, paint: Folder, tiny_base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DELTAW_CACHE", str(tmp_path / "cold"))
    folder = pictures(3)

    def edit(event: Event) -> None:
        if isinstance(event, Table) and event.title == "plan":
            paint(folder / "p01.png", 99)

    with pytest.raises(InputError, match=r"changed since it was scanned.*p01\.png"):
        train(folder, tiny_base, tmp_path / "out", tell=edit)


def test_row_16_edits_after_the_reading_do_not_reach_the_run(pictures: Folder, tiny_base: Path, tmp_path: Path) -> None:
    folder = pictures(3)
    whole = train(folder, tiny_base, tmp_path / "whole").file.read_bytes()

    def edit(event: Event) -> None:
        if isinstance(event, Step) and event.step == 1:
            shutil.rmtree(folder)

    assert train(folder, tiny_base, tmp_path / "out", tell=edit).file.read_bytes() == whole


def test_row_16_a_removed_result_folder_is_made_again_and_said(
    pictures: Folder, tiny_base: Path, tmp_path: Path
) -> None:
    heard: list[Event] = []

    def remove(event: Event) -> None:
        heard.append(event)
        if isinstance(event, Step) and event.step == 3:
            shutil.rmtree(tmp_path / "out")

    report = train(pictures(3), tiny_base, tmp_path / "out", tell=remove)
    assert report.file.is_file()
    assert any("result folder was removed" in e.text for e in heard if isinstance(e, Warn))
