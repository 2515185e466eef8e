"""What the loop does when numbers are not finite, and where its randomness comes from."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

import deltaw
from deltaw.errors import DeltawError
from deltaw.events import Event, Step, Warn
from deltaw.training import loop

SETTINGS = ("sample_steps=2", "snapshots=5", 'prompts=["a house"]', "dtype=float32")


def _train(
    folder: Path, base: Path, out: Path, monkeypatch: pytest.MonkeyPatch, broken: set[int], heard: list[Event]
) -> deltaw.Report:
    original = loop._loss

    def sometimes_nan(work: loop.Work, pictures: list[int], step: int) -> torch.Tensor:
        return original(work, pictures, step) * (float("nan") if step in broken else 1.0)

    monkeypatch.setattr(loop, "_loss", sometimes_nan)
    return deltaw.train(
        folder, base=str(base), out=out, steps=10, batch=1, rank=2, settings=SETTINGS, tell=heard.append
    )


def test_a_step_without_finite_loss_is_skipped_and_said(
    pictures: Callable[..., Path], tiny_base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    heard: list[Event] = []
    report = _train(pictures(3), tiny_base, tmp_path / "out", monkeypatch, {3, 4}, heard)
    assert report.proof.effect > 0
    assert sum("the step is skipped" in e.text for e in heard if isinstance(e, Warn)) == 2
    assert len([e for e in heard if isinstance(e, Step)]) == 10


def test_five_in_a_row_stop_the_run_and_leave_the_last_good_snapshot(
    pictures: Callable[..., Path], tiny_base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(DeltawError, match="5 steps in a row") as caught:
        _train(pictures(3), tiny_base, tmp_path / "out", monkeypatch, {3, 4, 5, 6, 7}, [])
    assert "the last snapshot is sound" in str(caught.value)
    assert (tmp_path / "out" / "snapshots" / "blocks-000002.safetensors").is_file()
    assert not (tmp_path / "out" / "blocks.safetensors").exists()


def test_seeded_is_a_function_of_its_words() -> None:
    def first(*words: object) -> float:
        return float(torch.rand(1, generator=loop.seeded(*words)))  # type: ignore[arg-type]

    assert first(0, "noise", 5) == first(0, "noise", 5)
    assert len({first(s, p, n) for s in (0, 1) for p in ("noise", "init") for n in (1, 2)}) == 8
