"""A step that is shared out among processes is the same step; what goes wrong in one of them is named, and nothing is lost."""

from __future__ import annotations

import contextlib
import pickle
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest
import torch

import deltaw
from deltaw import device as devices
from deltaw import options, tensorfile
from deltaw.data import folder
from deltaw.errors import DeltawError, Interrupted, UsageError
from deltaw.events import Event, Note, Phase, Step, Table
from deltaw.families import bases
from deltaw.training import exhausted, plan, replay, report, run, stepping, team
from deltaw.training.folder import RunFolder
from deltaw.training.plan import Plan
from deltaw.training.process import Order, Reply
from deltaw.training.replay import Steps
from deltaw.training.stepping import Batch
from deltaw.training.team import Team

Folder = Callable[..., Path]
SETTINGS = (
    "sample_steps=2",
    "snapshots=2",
    'prompts=["a house"]',
    "dtype=float32",
    "device=cpu",
    "save_dtype=float32",
    "stop=false",
)
OPTIONS = {"steps": 6, "batch": 4, "rank": 2, "lr": 1e-3}
CPU = torch.device("cpu")


def train(
    pictures: Path, base: Path, out: Path, *settings: str, tell: Callable[[Event], None] = lambda _: None, **more: Any
) -> deltaw.Report:
    return deltaw.train(
        pictures, base=str(base), out=out, settings=(*SETTINGS, *settings), tell=tell, **{**OPTIONS, **more}
    )


def planned(pictures: Path, base: Path, *settings: str) -> Plan:
    given = options.parse(OPTIONS, [*SETTINGS, *settings])
    return plan.make(given, bases.open_base(base), folder.scan(pictures))


@pytest.mark.parametrize(
    ("base", "more"), [("tiny_base", ("micro_batch=1",)), ("tiny_xl", ("checkpointing=true",)), ("tiny_flux", ())]
)
def test_processes_give_one_processs_weights_answers_and_pictures(
    base: str, more: tuple[str, ...], pictures: Folder, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    shown, at = pictures(9), request.getfixturevalue(base)
    heard: list[Event] = []
    alone = train(shown, at, tmp_path / "alone", *more)
    together = train(shown, at, tmp_path / "together", "processes=2", *more, tell=heard.append)
    assert together.losses == pytest.approx(alone.losses, rel=1e-4)
    one, two = (tensorfile.read(found.file) for found in (alone, together))
    for name, tensor in one.items():
        torch.testing.assert_close(two[name], tensor, rtol=1e-2, atol=2e-5)
    assert [s.loss for s in together.scores] == pytest.approx([s.loss for s in alone.scores], rel=1e-4)
    for row, found in alone.copies.nearest.items():
        distances = [n.distance for n in together.copies.nearest[row]]
        assert distances == pytest.approx([n.distance for n in found], rel=1e-2), "drawn by either process"
    said = "2 processes share out every step, the questions and the sheet: on cpu, cpu"
    assert said in [e.text for e in heard if isinstance(e, Note)]
    (peak,) = together.peaks
    assert (peak.device, peak.device_bytes) == ("cpu", 0)
    assert 1e8 < peak.rss_bytes < 4e9
    assert ("peak memory of the process on cpu", f"{peak.rss_bytes / 1e9:.2f} GB") in report.cost(together)
    assert not alone.peaks
    assert not members(), "they end with the run"


def members() -> list[psutil.Process]:
    """Processes of teams that this one has started."""
    return [child for child in psutil.Process().children() if "deltaw.training.member" in child.cmdline()]


def test_a_shared_run_is_stopped_resumed_and_trained_anew_to_the_bit(
    pictures: Folder, tiny_base: Path, tmp_path: Path
) -> None:
    shown = pictures(9)
    whole = train(shown, tiny_base, tmp_path / "whole", "processes=2", "final_all=true").file
    taken: list[int] = []
    with pytest.raises(Interrupted, match="stopped after step 4 of 6; everything is saved"):
        train(
            shown, tiny_base, tmp_path / "cut", "processes=2", "final_all=true", stop_asked=lambda: len(taken) == 4,
            tell=lambda e: taken.append(e.step) if isinstance(e, Step) else None,
        )  # fmt: skip
    assert not members()
    resumed = train(shown, tiny_base, tmp_path / "cut", "processes=2", "final_all=true", resume=True)
    assert resumed.file.read_bytes() == whole.read_bytes()
    with pytest.raises(UsageError, match="processes: was 2, is 1"):
        train(shown, tiny_base, tmp_path / "cut", "processes=1", "final_all=true", resume=True)


def test_a_process_that_is_ended_is_named_and_what_was_saved_stays(
    pictures: Folder, tiny_base: Path, tmp_path: Path
) -> None:
    def end(event: Event) -> None:
        if isinstance(event, Step) and event.step == 4:
            members()[0].kill()

    with pytest.raises(DeltawError, match=r"process 2 of 2, on cpu, ended by itself \(signal 9\)") as caught:
        train(pictures(9), tiny_base, tmp_path / "out", "processes=2", tell=end)
    assert "--set processes=1" in caught.value.advice
    assert (tmp_path / "out" / "snapshots" / "blocks-000003.safetensors").is_file()
    assert not members()
    assert not torch.distributed.is_initialized(), "another run can begin"


def test_a_process_that_cannot_load_says_why(pictures: Folder, tiny_base: Path, tmp_path: Path) -> None:
    made = planned(pictures(5), tiny_base, "processes=2")
    with Team.of(tmp_path / "nowhere", made, CPU) as found:
        assert found is not None
        with pytest.raises(DeltawError, match=r"process 2 of 2, on cpu, failed: .*nowhere"):
            found.join()
    assert not members()


class Huge:
    """What takes more memory than there is, as soon as another process reads it."""

    def __reduce__(self) -> tuple[object, ...]:
        return bytes, (1 << 60,)


def test_memory_that_runs_out_elsewhere_is_advised_on_as_here(
    pictures: Folder, tiny_base: Path, tmp_path: Path
) -> None:
    made = planned(pictures(5), tiny_base, "processes=2")

    def shared() -> None:
        with exhausted.named(made.settings, RunFolder(tmp_path, "blocks")), Team.of(tiny_base, made, CPU) as found:
            assert found is not None
            found._others[0].send(Huge())
            found.join()
            found.replies()

    with pytest.raises(DeltawError, match=r"memory ran out \(process 2 of 2, on cpu") as caught:
        shared()
    assert "take --set micro_batch=1" in caught.value.advice
    assert not members()


def test_a_process_whose_main_one_is_gone_ends_too() -> None:
    command = [sys.executable, "-m", "deltaw.training.member"]
    gone = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, check=False, timeout=120)
    assert (gone.returncode, gone.stdout) == (0, b"")
    told = subprocess.run(command, input=pickle.dumps("no task"), capture_output=True, check=False, timeout=120)
    reply: Reply = pickle.loads(told.stdout)
    assert reply.failed
    assert not reply.out_of_memory


def test_a_process_that_ends_before_it_begins_is_named(
    pictures: Folder, tiny_base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = planned(pictures(5), tiny_base, "processes=2")
    monkeypatch.setattr(sys, "executable", shutil.which("false"))

    def shared() -> None:
        with Team.of(tiny_base, made, CPU) as found:
            assert found is not None
            found.join()

    with pytest.raises(DeltawError, match=r"process 2 of 2, on cpu, ended by itself \(exit code 1\)"):
        shared()


@pytest.mark.parametrize(
    ("settings", "refused"),
    [
        (("processes=3",), "a step of 4 pictures cannot be shared out evenly among 3 processes"),
        (("processes=2", "micro_batch=4"), "a process's share of 2 pictures is not made of parts of 4"),
        (("processes=2", "device=mps"), "device 'mps' cannot be used"),
    ],
)
def test_shares_that_cannot_be_are_refused(
    settings: tuple[str, ...], refused: str, pictures: Folder, tiny_base: Path
) -> None:
    with pytest.raises(UsageError, match=refused):
        planned(pictures(5), tiny_base, *settings)


def test_a_plan_has_a_picture_for_every_gpu_and_says_how_many_there_are(
    pictures: Folder, tiny_base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 6)
    monkeypatch.setattr(devices, "choose", lambda _=None: (torch.device("cuda"), "asked for"))
    monkeypatch.setattr(devices, "compute_dtype", lambda _: (torch.float32, "tried"))
    base, found = bases.open_base(tiny_base), folder.scan(pictures(5))

    def made(*settings: str) -> Plan:
        return plan.make(options.parse({}, list(settings)), base, found)

    one, six = made(), made("processes=6")
    assert (one.settings.batch, one.settings.micro_batch, one.settings.n_gpus) == (4, 4, 1)
    assert one.values["processes"].reason == "6 GPUs are here; --set processes=6 shares every step out among them"
    assert (six.settings.batch, six.settings.micro_batch, six.settings.n_gpus) == (6, 1, 6)
    with pytest.raises(UsageError, match="8 processes need as many GPUs, and 6 are here"):
        made("processes=8")


def test_gpus_are_taken_in_their_order_the_asked_one_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    assert [d.index for d in devices.several(torch.device("cuda", 2), 3)] == [2, 0, 1]
    assert [str(d) for d in devices.several(torch.device("cuda"), 2)] == ["cuda:0", "cuda:1"]
    assert devices.several(torch.device("cuda"), 1) == [torch.device("cuda")]
    assert devices.several(CPU, 3) == [CPU] * 3
    with pytest.raises(UsageError, match="2 processes need as many GPUs, and 1 is here") as caught:
        devices.several(torch.device("mps"), 2)
    assert caught.value.advice == "take --set processes=1"
    monkeypatch.setattr(torch.distributed, "is_available", lambda: False)
    with pytest.raises(UsageError, match=r"no torch\.distributed"):
        devices.several(CPU, 2)


class Others:
    """A team that computes nothing: what it was told, in words, and what its members answer."""

    n = 3

    def __init__(self) -> None:
        self.did: list[object] = []

    def begin(self, kind: str, shares: list[list[Batch]], values: torch.Tensor) -> None:
        self.did += [kind, [[part.x.tolist() for part in share] for share in shares]]

    def cores(self) -> Any:
        self.did.append("on my cores")
        return contextlib.nullcontext()

    def replies(self) -> list[float]:
        return [10.0, 100.0]

    def add_up(self, grads: torch.Tensor) -> None:
        grads += 1


def test_parts_are_dealt_out_in_order_and_added_up(monkeypatch: pytest.MonkeyPatch) -> None:
    computed: list[list[float]] = []

    def gradients(_work: object, part: Batch) -> torch.Tensor:
        computed.append(part.x.tolist())
        return part.x.sum()

    monkeypatch.setattr(stepping, "add_gradients", gradients)
    others, flat = Others(), SimpleNamespace(begin=lambda: None, values=torch.zeros(2), grads=torch.zeros(2))
    settings = SimpleNamespace(settings=SimpleNamespace(micro_batch=1))
    work: Any = SimpleNamespace(device=CPU, dtype=torch.float32, flat=flat, plan=settings, team=others)
    compute = Steps(work, lambda _: None)
    rows = torch.arange(6.0)
    loss = compute(Batch(rows, rows, rows, rows, torch.ones(6)))
    assert computed == [[0.0], [1.0]]
    assert others.did == ["gradients", [[[2.0], [3.0]], [[4.0], [5.0]]], "on my cores"]
    assert float(compute.gathered(loss)) == 0 + 1 + 110
    assert flat.grads.tolist() == [1, 1]


def test_what_is_sent_takes_no_more_than_itself_along() -> None:
    rows = torch.zeros(64, 1000)
    (first, *_) = Batch(*(rows.clone() for _ in range(4)), torch.ones(64)).parts(1)
    assert len(pickle.dumps(Order("gradients", [first]))) < 20_000


def test_the_forecast_counts_what_lies_beside(pictures: Folder, tiny_base: Path, tmp_path: Path) -> None:
    heard: list[Event] = []

    def stop(event: Event) -> None:
        heard.append(event)
        if isinstance(event, Phase) and event.name == "try one sample":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(pictures(5), tiny_base, tmp_path / "out", "processes=4", tell=stop)
    (table,) = [e for e in heard if isinstance(e, Table) and e.title.startswith("what it will take")]
    (beside,) = [row for row in table.rows if row[0] == "memory: other processes"]
    assert 1.7 < float(beside[1].split()[0]) < 2.5, "three programs of some 0.6 GB"


def test_a_dry_run_measures_with_the_others_and_ends_them(pictures: Folder, tiny_base: Path, tmp_path: Path) -> None:
    heard: list[Event] = []
    given = options.parse({**OPTIONS, "base": str(tiny_base), "out": str(tmp_path / "out")}, [*SETTINGS, "processes=2"])
    run.dry_run(pictures(5), given, strict=False, tell=heard.append)
    (table,) = [e for e in heard if isinstance(e, Table) and e.title == "how long it will take"]
    assert table.rows[0][2].startswith("6 steps of")
    assert not members()
    assert not torch.distributed.is_initialized()
    assert not (tmp_path / "out").exists()


def test_nccl_waits_for_nobody_who_is_gone(monkeypatch: pytest.MonkeyPatch) -> None:
    did: list[str] = []
    monkeypatch.setattr(torch.distributed, "destroy_process_group", lambda: did.append("destroyed"))
    monkeypatch.setattr(torch.distributed.distributed_c10d, "_abort_process_group", lambda: did.append("aborted"))
    for backend, alone in (("nccl", True), ("nccl", False), ("gloo", True)):
        monkeypatch.setattr(torch.distributed, "get_backend", lambda name=backend: name)
        team.leave(alone=alone)
    assert did == ["aborted", "destroyed", "destroyed"]


def test_nccls_own_thread_does_not_end_a_recording(monkeypatch: pytest.MonkeyPatch) -> None:
    assert replay._strictness() == "global"
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    assert replay._strictness() == "thread_local"


def test_a_run_that_only_fits_alone_is_told_so(
    pictures: Folder, tiny_base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(devices, "available_bytes", lambda _: (500_000_000, "free of this machine's 1.0 GB"))
    with pytest.raises(UsageError, match="the run needs") as caught:
        train(pictures(5), tiny_base, tmp_path / "out", "processes=2")
    assert caught.value.advice.startswith("take --set processes=1: it needs 0.")
