"""When a step is launched, recorded and replayed, with a GPU that only counts: the real one is measured by `benchmarks.step_time`."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from deltaw import device as devices
from deltaw.events import Event, Note
from deltaw.training import replay, stepping
from deltaw.training.replay import Steps
from deltaw.training.stepping import Batch


class Gpu:
    """What happened, in words; `fails` lets recording fail with that message."""

    def __init__(self) -> None:
        self.did: list[str] = []
        self.began: list[int] = []
        self.fails = ""
        self.reserved = 0
        self.heard: list[Event] = []

    def graph(self) -> Any:
        return SimpleNamespace(replay=lambda: self.did.append("replayed"), pool=lambda: "pool")

    @contextlib.contextmanager
    def recording(self, _graph: object, **asked: object) -> Iterator[None]:
        self.did.append(f"recorded into {asked['pool']}")
        if self.fails:
            raise RuntimeError(f"{self.fails}\nmore words")
        yield
        self.reserved += 1000

    def gradients(self, _work: object, there: Batch) -> torch.Tensor:
        self.did.append(f"computed {len(there.x)}")
        return there.x.sum()


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> Gpu:
    found = Gpu()
    stream = SimpleNamespace(wait_stream=lambda _: None)
    monkeypatch.setattr(torch.cuda, "Stream", lambda _: stream)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda _: stream)
    monkeypatch.setattr(torch.cuda, "stream", lambda _: contextlib.nullcontext())
    monkeypatch.setattr(torch.cuda, "CUDAGraph", found.graph)
    monkeypatch.setattr(torch.cuda, "graph", found.recording)
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda _: found.reserved)
    monkeypatch.setattr(stepping, "add_gradients", found.gradients)
    monkeypatch.setattr(Batch, "on", lambda self, *_: Batch(*(t.clone() for t in self.tensors())))
    return found


def steps(gpu: Gpu, micro_batch: int = 8) -> Steps:
    flat = SimpleNamespace(begin=lambda: gpu.began.append(len(gpu.did)))
    work: Any = SimpleNamespace(
        device=SimpleNamespace(type="cuda"), dtype=torch.bfloat16, flat=flat, plan=planned(micro_batch), team=None
    )
    return Steps(work, gpu.heard.append)


def planned(micro_batch: int) -> Any:
    return SimpleNamespace(settings=SimpleNamespace(micro_batch=micro_batch))


def batch(n: int, value: float = 1.0) -> Batch:
    return Batch(*(torch.full((n,), value) for _ in range(5)))


def test_a_shape_is_launched_once_then_recorded_then_replayed(gpu: Gpu) -> None:
    compute = steps(gpu)
    for _ in range(3):
        compute(batch(2))
    assert gpu.did == ["computed 2", "recorded into None", "computed 2", "replayed", "replayed"]
    gpu.did.clear()
    for _ in range(3):
        compute(batch(4))
    assert gpu.did == ["computed 4", "recorded into pool", "computed 4", "replayed", "replayed"], "one memory for all"
    assert replay.n_first(torch.device("cuda")) == 3


def test_parts_of_a_step_are_replayed_one_after_another(gpu: Gpu) -> None:
    compute = steps(gpu, micro_batch=2)
    compute(batch(6))
    assert gpu.did == ["computed 2", "recorded into None", "computed 2", "replayed", "replayed"]
    gpu.did.clear()
    compute(batch(6))
    assert gpu.did == ["replayed"] * 3
    assert gpu.began == [0, 0], "gradients are made zero once a step, before its parts"
    (recorded,) = compute._recorded.values()
    assert torch.equal(recorded.read.weights, torch.full((2,), 1 / 3)), "the parts' mean losses add up to the whole's"


def test_losses_of_parts_are_added_up_though_they_are_read_from_one_place(gpu: Gpu) -> None:
    compute = steps(gpu, micro_batch=1)
    compute(batch(2))
    (recorded,) = compute._recorded.values()
    replayed = iter((1.0, 10.0, 100.0))
    recorded.graph.replay = lambda: recorded.loss.fill_(next(replayed))
    assert float(compute(batch(3))) == 111


def test_what_is_replayed_reads_the_new_batch(gpu: Gpu) -> None:
    compute = steps(gpu)
    for value in (1.0, 2.0, 3.0):
        compute(batch(2, value))
    (recorded,) = compute._recorded.values()
    assert all(torch.equal(t, torch.full((2,), 3.0)) for t in recorded.read.tensors())


@pytest.mark.parametrize(
    ("fails", "said"), [("operation not permitted when stream is capturing", "not permitted"), ("CUDA out of memory", "memory is short")]
)  # fmt: skip
def test_what_cannot_be_recorded_is_said_once_and_launched(gpu: Gpu, fails: str, said: str) -> None:
    gpu.fails = fails
    compute = steps(gpu)
    for _ in range(4):
        compute(batch(2))
    assert gpu.did == ["computed 2", "recorded into None", "computed 2", "computed 2", "computed 2"]
    (note,) = gpu.heard
    assert isinstance(note, Note)
    assert said in note.text
    assert "more words" not in note.text


def test_recorded_steps_make_room_where_memory_is_short(gpu: Gpu, monkeypatch: pytest.MonkeyPatch) -> None:
    compute = steps(gpu)
    for _ in range(3):
        compute(batch(2))
    free = [1000]
    monkeypatch.setattr(devices, "available_bytes", lambda _: (free[0], "free"))
    compute.make_room()
    assert compute._recorded
    free[0] = 999
    compute.make_room()
    gpu.did.clear()
    compute(batch(2))
    assert gpu.did == ["recorded into None", "computed 2", "replayed"], "anew, in memory of its own"


def test_no_more_shapes_are_recorded_than_memory_is_worth(gpu: Gpu, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(replay, "MOST_GRAPHS", 1)
    compute = steps(gpu)
    for n in (2, 3):
        for _ in range(3):
            compute(batch(n))
    assert gpu.did[-3:] == ["computed 3"] * 3


def test_a_cpu_records_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[str] = []
    monkeypatch.setattr(
        stepping, "add_gradients", lambda _work, there: seen.append(there.x.device.type) or there.x.sum()
    )
    flat = SimpleNamespace(begin=lambda: None)
    work: Any = SimpleNamespace(device=torch.device("cpu"), dtype=torch.float32, flat=flat, plan=planned(8), team=None)
    compute = Steps(work, seen.append)
    for _ in range(4):
        compute(batch(2))
    assert seen == ["cpu"] * 4
