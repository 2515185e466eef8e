"""What the machine offers: one line a thing, one fix a problem."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from deltaw import device as devices
from deltaw.errors import UsageError
from deltaw.events import Event, Table, Warn
from deltaw.verbs import doctor


def look(name: str) -> doctor.Finding:
    """The finding of that name."""
    return next(f for f in (see() for see in doctor._LOOKS) if f.name.startswith(name))


def test_every_thing_has_one_line() -> None:
    events: list[Event] = []
    doctor.examine(events.append)
    (table,) = (e for e in events if isinstance(e, Table))
    names = [row[0].partition(" (")[0] for row in table.rows]
    assert names == [
        "Python",
        "torch",
        "libraries",
        "device",
        "GPU kernels",
        "precision",
        "memory",
        "disk here",
        "cache",
    ]
    assert all(row[1] for row in table.rows)


def test_every_problem_has_one_fix(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(devices, "available_bytes", lambda _: (10**9, "free of this container's limit of 1.5 GB"))
    (tmp_path / "file").write_text("x")
    monkeypatch.setenv("DELTAW_CACHE", str(tmp_path / "file"))
    monkeypatch.setattr(doctor, "LEAST_DISK_BYTES", 1e18)
    monkeypatch.setattr(doctor.shutil, "which", lambda _: "/usr/bin/nvidia-smi")
    events: list[Event] = []
    assert not doctor.examine(events.append)
    warned = {e.text.partition(":")[0].partition(" (")[0]: e.text for e in events if isinstance(e, Warn)}
    assert {"memory", "disk here", "cache"} <= set(warned)
    assert "DELTAW_CACHE" in warned["cache"]
    assert ("torch" in warned) == (torch.version.cuda is None and torch.version.hip is None)
    assert "1.0 GB free of this container's limit of 1.5 GB" in look("memory").value


def test_a_device_that_fails_is_named_and_nothing_else_falls(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(_: object = None) -> None:
        raise UsageError("device 'cuda' cannot be used: no kernel image is available")

    monkeypatch.setattr(devices, "choose", broken)
    assert "driver" in look("device").fix
    assert look("precision").fix == "mend the device first"
    assert look("memory").value


@pytest.mark.parametrize("broken", ["joined", "rotary"])
def test_kernels_that_cannot_be_used_are_a_problem_with_a_fix(monkeypatch: pytest.MonkeyPatch, broken: str) -> None:
    assert not look("GPU kernels").fix
    monkeypatch.setattr(devices, "choose", lambda: (torch.device("cuda"), "a GPU"))
    for module in (doctor.joined, doctor.rotary):
        monkeypatch.setattr(module, "broken", lambda _: "")
    monkeypatch.setattr(getattr(doctor, broken), "broken", lambda _: "Failed to find C compiler")
    found = look("GPU kernels")
    assert "C compiler" in found.value
    assert "triton" in found.fix
    monkeypatch.setattr(getattr(doctor, broken), "broken", lambda _: "")
    assert not look("GPU kernels").fix


def test_a_precision_that_computes_nonsense_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "LARGEST_ERROR", 0.0)
    found = look("precision")
    assert "a product is wrong by" in found.value
    assert "dtype=float32" in found.fix
