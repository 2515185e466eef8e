"""What the loop does when numbers are not finite, and where its randomness comes from."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import deltaw
from deltaw import inject, tensorfile
from deltaw.data import feed
from deltaw.delta import Delta
from deltaw.errors import DeltawError
from deltaw.events import Event, Step, Warn
from deltaw.training import loop, stepping
from deltaw.training.outlook import Outlook
from deltaw.training.stepping import Batch, Work

SETTINGS = ("sample_steps=2", "snapshots=5", 'prompts=["a house"]', "dtype=float32")


def _train(
    folder: Path, base: Path, out: Path, monkeypatch: pytest.MonkeyPatch, broken: set[int], heard: list[Event]
) -> deltaw.Report:
    original = stepping.batch

    def sometimes_nan(work: Work, pictures: list[int], step: int) -> Batch:
        batch = original(work, pictures, step)
        return replace(batch, weights=batch.weights * (float("nan") if step in broken else 1.0))

    monkeypatch.setattr(stepping, "batch", sometimes_nan)
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
    assert "the adapter before them is" in str(caught.value)
    kept = tensorfile.read(tmp_path / "out" / "snapshots" / "blocks-000002.safetensors")
    last = tensorfile.read(tmp_path / "out" / "snapshots" / "blocks-000007.safetensors")
    assert all(torch.equal(last[name], tensor) for name, tensor in kept.items()), "bad steps change nothing"
    assert not (tmp_path / "out" / "blocks.safetensors").exists()


def _spoil_base(path: Path, to: Path, change: Callable[[dict[str, torch.Tensor]], None]) -> Path:
    shutil.copytree(path, to)
    [file] = (to / "unet").glob("*.safetensors")
    tensors = tensorfile.read(file)
    change(tensors)
    tensorfile.write(file, tensors, {"format": "pt"})
    return to


def _spoil_feed(monkeypatch: pytest.MonkeyPatch, change: Callable[[feed.Feed], None]) -> None:
    original = feed.fill

    def spoilt(*words: object, **more: object) -> feed.Feed:
        data = original(*words, **more)  # type: ignore[arg-type]
        change(data)
        return data

    monkeypatch.setattr(feed, "fill", spoilt)


def _failure(folder: Path, base: Path, out: Path, *settings: str) -> str:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Outlook, "try_sample", lambda *_: None)  # which would refuse a broken base even earlier
        with pytest.raises(DeltawError, match="2 steps in a row") as caught:
            deltaw.train(folder, base=str(base), out=out, steps=10, batch=1, rank=2, settings=(*SETTINGS, *settings))
    assert "nothing was learnt before them" in str(caught.value)
    return str(caught.value)


def test_the_precision_is_named_where_float16_overflows(
    pictures: Callable[..., Path], tiny_base: Path, tmp_path: Path
) -> None:
    def enlarge(tensors: dict[str, torch.Tensor]) -> None:
        tensors["conv_in.weight"] *= 1e6  # the norm after it takes the scale out again, in float32

    base = _spoil_base(tiny_base, tmp_path / "large", enlarge)
    said = _failure(pictures(3), base, tmp_path / "out", "dtype=float16")
    assert "the cause: the precision: the base alone overflows in float16" in said
    assert "dtype=float32" in said


def test_broken_weights_of_the_base_are_named(pictures: Callable[..., Path], tiny_base: Path, tmp_path: Path) -> None:
    def spoil(tensors: dict[str, torch.Tensor]) -> None:
        tensors["conv_out.bias"][0] = float("nan")

    base = _spoil_base(tiny_base, tmp_path / "nan", spoil)
    assert "the base alone, in float32, is not finite" in _failure(pictures(3), base, tmp_path / "out")


def test_latents_that_are_not_finite_are_named(
    pictures: Callable[..., Path], tiny_base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def spoil(data: feed.Feed) -> None:
        for latent in data.latents:
            latent[0, 0, 0] = float("inf")

    _spoil_feed(monkeypatch, spoil)
    assert "the latents of 1 pictures are not finite" in _failure(pictures(3), tiny_base, tmp_path / "out")


def test_an_embedding_that_is_not_finite_is_named(
    pictures: Callable[..., Path], tiny_base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def spoil(data: feed.Feed) -> None:
        for text in data.texts:
            data.texts[text][0, 0] = float("nan")

    _spoil_feed(monkeypatch, spoil)
    said = _failure(pictures(3), tiny_base, tmp_path / "out")
    assert re.search(r"the cause: the embedding of 'a thing number \d, blocky style' is not finite", said)


def test_an_adapter_that_is_not_finite_itself_is_named(
    pictures: Callable[..., Path], tiny_base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = loop.optim.clip

    def spoil(parameters: list[torch.nn.Parameter], max_norm: float) -> float:
        norm = original(parameters, max_norm)
        parameters[0].data.fill_(float("nan"))
        return norm

    monkeypatch.setattr(loop.optim, "clip", spoil)
    settings = ("snapshots=1", *SETTINGS[:1], *SETTINGS[2:])
    with pytest.raises(DeltawError, match=r"the adapter itself is not finite \(.*\.down\)") as caught:
        deltaw.train(
            pictures(3), base=str(tiny_base), out=tmp_path / "out", steps=20, batch=1, rank=2, settings=settings
        )
    assert "no sound adapter was saved" in str(caught.value)


def test_what_does_not_happen_again_is_the_hardwares_fault(
    pictures: Callable[..., Path], tiny_base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = {"steps": 10, "batch": 1, "rank": 2, "lr": 1e-2}
    monkeypatch.setattr(loop.optim, "clip", lambda *_: float("nan"))  # the gradients themselves are sound
    with pytest.raises(DeltawError, match="the same batch is finite when it is tried again"):
        deltaw.train(
            pictures(3), base=str(tiny_base), out=tmp_path / "out", settings=(*SETTINGS, "dtype=float32"), **settings
        )


def test_an_adapter_that_has_grown_too_large_is_the_learning_rates_fault(
    pictures: Callable[..., Path], tiny_base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = loop.optim.clip

    def blow_up(parameters: list[torch.nn.Parameter], max_norm: float) -> float:
        norm = original(parameters, max_norm)
        parameters[-1].data.fill_(1e30)
        return norm

    monkeypatch.setattr(loop.optim, "clip", blow_up)
    with pytest.raises(DeltawError, match="the cause: the learning rate") as caught:
        _train(pictures(3), tiny_base, tmp_path / "out", monkeypatch, set(), [])
    assert "grown to 1e+30" in str(caught.value)


def test_numbers_too_large_for_the_file_are_written_in_float32_and_the_layers_named(
    pictures: Callable[..., Path], tiny_base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = inject.take

    def lopsided(wrapped: inject.Wrapped, family: str, component: str) -> Delta:
        taken = original(wrapped, family, component)
        update = next(iter(taken.updates.values()))
        update.tensors["up"].mul_(1e9)
        update.tensors["down"].mul_(1e-9)  # the same change, with numbers that float16 has not
        return taken

    monkeypatch.setattr(inject, "take", lopsided)
    heard: list[Event] = []
    report = deltaw.train(
        pictures(3), base=str(tiny_base), out=tmp_path / "out", steps=4, batch=1, rank=2, lr=1e-2, settings=SETTINGS,
        tell=heard.append,
    )  # fmt: skip
    said = [e.text for e in heard if isinstance(e, Warn) and "too large for float16" in e.text]
    assert said
    assert "unet." in said[-1]
    assert "float32" in said[-1]
    tensors = tensorfile.read(report.file)
    assert all(t.dtype == torch.float32 and bool(torch.isfinite(t).all()) for t in tensors.values())


def test_seeded_is_a_function_of_its_words() -> None:
    def first(*words: object) -> float:
        return float(torch.rand(1, generator=stepping.seeded(*words)))  # type: ignore[arg-type]

    assert first(0, "noise", 5) == first(0, "noise", 5)
    assert len({first(s, p, n) for s in (0, 1) for p in ("noise", "init") for n in (1, 2)}) == 8


@pytest.mark.parametrize("n", [1, 3, 4, 16, 20])
def test_small_batches_go_through_the_schedule_together(n: int) -> None:
    together = max(1, stepping.PARTS // n)
    for group in range(2):
        steps = range(1 + group * together, 1 + (group + 1) * together)
        drawn = torch.cat([stepping.spread(n, step, 0, stepping.seeded(0, "noise", step)) for step in steps])
        assert sorted((drawn * together * n).long().tolist()) == list(range(together * n)), "each part once"
    first = torch.cat([stepping.spread(n, 1, seed, stepping.seeded(seed, "noise", 1)) for seed in range(200)])
    assert abs(float(first.mean()) - 0.5) < 5 * (12 * len(first)) ** -0.5, "a single step's are uniform"
