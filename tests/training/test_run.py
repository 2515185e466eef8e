"""The main job on a tiny base: files, determinism, resuming after a kill, stopping, refusals."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tomllib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

import deltaw
from deltaw import formats, tensorfile
from deltaw.delta import Delta
from deltaw.errors import InputError, Interrupted, ManyErrors, UnverifiedError, UsageError
from deltaw.events import Event, Note, Saved, Step
from deltaw.training import stepping, verify
from deltaw.training.stepping import Batch, Work

QUICK = {"steps": 4, "batch": 2, "rank": 2, "lr": 1e-2}
QUICK_SETTINGS = ("sample_steps=2", "snapshots=2", 'prompts=["a house"]', "dtype=float32")
TO_THE_BIT = ("device=cpu",)
"""For runs whose files are compared: what a GPU computes twice may differ in its last bits, by the order of its sums."""


def train(folder: Path, base: Path, out: Path, settings: tuple[str, ...] = (), **more: object) -> deltaw.Report:
    return deltaw.train(folder, base=str(base), out=out, settings=(*QUICK_SETTINGS, *settings), **{**QUICK, **more})


def test_a_folder_becomes_a_verified_file(pictures: Callable[..., Path], tiny_base: Path, tmp_path: Path) -> None:
    heard: list[Event] = []
    report = train(pictures(9), tiny_base, tmp_path / "out", tell=heard.append)
    out = tmp_path / "out"
    assert {p.name for p in out.iterdir()} == {
        "blocks.safetensors", "snapshots", "state", "report.html", "sheet.png", "run.toml", "events.jsonl",
    }  # fmt: skip
    assert sorted(p.name for p in (out / "snapshots").iterdir()) == [
        "blocks-000002.safetensors", "blocks-000004.safetensors",
    ]  # fmt: skip
    assert report.proof.deviation < 0.01 < report.proof.effect
    assert report.proof.n_modules == 32
    assert [e.step for e in heard if isinstance(e, Step)] == [1, 2, 3, 4]
    assert any("base: " in e.text for e in heard if isinstance(e, Note))
    assert {Path(e.path).name for e in heard if isinstance(e, Saved)} >= {
        "blocks.safetensors",
        "sheet.png",
        "report.html",
    }
    lines = [json.loads(line) for line in (out / "events.jsonl").read_text().splitlines()]
    assert sum(line["event"] == "step" for line in lines) == 4


def test_the_file_says_what_it_is_and_nothing_private(
    pictures: Callable[..., Path], tiny_base: Path, tmp_path: Path
) -> None:
    report = train(pictures(3), tiny_base, tmp_path / "out", trigger="zxq", alpha=1.0)
    metadata = tensorfile.read_header(report.file).metadata
    assert metadata["ss_base_model_version"] == "sd_v1"
    assert (metadata["ss_network_dim"], metadata["ss_network_alpha"]) == ("2", "1")
    assert metadata["modelspec.trigger_phrase"] == "zxq"
    assert metadata["modelspec.architecture"] == "stable-diffusion-v1/lora"
    raw = report.file.read_bytes()
    for private in (str(tmp_path), str(Path.home()), os.uname().nodename, "a thing number"):
        assert private.encode() not in raw


@pytest.mark.parametrize("dialect", ["kohya", "diffusers", "peft", "comfy"])
def test_every_dialect_can_be_asked_for(
    pictures: Callable[..., Path], tiny_base: Path, tmp_path: Path, dialect: str
) -> None:
    report = train(pictures(3), tiny_base, tmp_path / "out", dialect=dialect)
    delta, match = formats.load(report.file, shapes=formats.shapes_of(tiny_base))
    assert dialect in match.dialects
    assert len(delta.updates) == 32
    assert report.n_bytes > 1000


def test_a_dialect_that_would_lose_modules_is_refused_before_training(
    pictures: Callable[..., Path], tiny_base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def forgetful(path: Path, **more: object) -> tuple[Delta, formats.Match]:
        delta, match = formats.load(path, **more)  # type: ignore[arg-type]
        return replace(delta, updates=dict(list(delta.updates.items())[1:])), match

    monkeypatch.setattr(verify, "formats", SimpleNamespace(load=forgetful, save=formats.save))
    heard: list[Event] = []
    with pytest.raises(UnverifiedError, match="would lose modules"):
        train(pictures(3), tiny_base, tmp_path / "out", tell=heard.append)
    assert not any(isinstance(e, Step) for e in heard)


def test_an_unknown_dialect_is_refused_before_training(
    pictures: Callable[..., Path], tiny_base: Path, tmp_path: Path
) -> None:
    heard: list[Event] = []
    with pytest.raises(UsageError, match="no dialect is called 'koyha'"):
        train(pictures(3), tiny_base, tmp_path / "out", dialect="koyha", tell=heard.append)
    assert not any(isinstance(e, Step) for e in heard)


def test_the_same_seed_gives_the_same_bytes(pictures: Callable[..., Path], tiny_base: Path, tmp_path: Path) -> None:
    folder = pictures(5)
    files = [train(folder, tiny_base, tmp_path / name, TO_THE_BIT).file for name in ("one", "two")]
    other = train(folder, tiny_base, tmp_path / "three", TO_THE_BIT, seed=1).file
    assert files[0].read_bytes() == files[1].read_bytes()
    assert files[0].read_bytes() != other.read_bytes()


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_activations_computed_again_give_the_same_weights(
    dtype: str, pictures: Callable[..., Path], tiny_base: Path, tmp_path: Path
) -> None:
    folder = pictures(5)
    found = []
    for kept in ("false", "true"):
        settings = (f"checkpointing={kept}", f"dtype={dtype}", *TO_THE_BIT)
        found.append(tensorfile.read(train(folder, tiny_base, tmp_path / kept, settings).file))
    assert found[0].keys() == found[1].keys()
    assert all(torch.equal(found[0][name], found[1][name]) for name in found[0])


@pytest.mark.parametrize(
    ("base", "more"),
    [("tiny_base", ("min_snr_gamma=0",)), ("tiny_xl", ("min_snr_gamma=5", "checkpointing=true")), ("tiny_flux", ())],
)
def test_parts_of_a_step_give_the_whole_steps_weights(
    base: str, more: tuple[str, ...], pictures: Callable[..., Path], tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    folder, at = pictures(5), str(request.getfixturevalue(base))
    found = []
    for n in (4, 2, 1):
        settings = (*QUICK_SETTINGS, *TO_THE_BIT, f"micro_batch={n}", "save_dtype=float32", *more)
        file = deltaw.train(
            folder, base=at, out=tmp_path / str(n), steps=6, batch=4, rank=2, lr=1e-3, settings=settings
        ).file
        found.append(tensorfile.read(file))
        events = [json.loads(line) for line in (tmp_path / str(n) / "events.jsonl").read_text().splitlines()]
        found[-1]["losses"] = torch.tensor([e["loss"] for e in events if e["event"] == "step"])
    for other in found[1:]:
        for name, tensor in found[0].items():
            torch.testing.assert_close(other[name], tensor, rtol=1e-2, atol=2e-5)
    assert any(not torch.equal(found[0][name], found[2][name]) for name in found[0]), "they were computed apart"


RUN = """
import sys, deltaw
deltaw.train(sys.argv[1], base=sys.argv[2], out=sys.argv[3], steps=10, batch=2, rank=2, lr=1e-2,
    resume=len(sys.argv) > 4 or None, tell=lambda e: print(type(e).__name__, getattr(e, "step", ""), flush=True),
    settings=("sample_steps=2", "snapshots=2", 'prompts=["a house"]', "dtype=float32", "device=cpu"))
"""


def test_prodigy_finds_its_rate_and_goes_on_with_it_to_the_bit(
    pictures: Callable[..., Path], tiny_base: Path, tmp_path: Path
) -> None:
    folder, heard = pictures(9), list[Event]()
    more = {
        "steps": 8,
        "lr": 10.0,
        "settings": (*TO_THE_BIT, "schedule=constant", "optimizer=prodigy", "stop=false", "pick=last"),
    }
    whole = train(folder, tiny_base, tmp_path / "whole", tell=heard.append, **more)
    taken = [e for e in heard if isinstance(e, Step)]
    assert taken[0].lr == pytest.approx(10 * 1e-5), "what was taken is the found rate times the factor"
    assert taken[3].lr > 100 * taken[0].lr
    assert [
        e.text for e in heard if isinstance(e, Note) and e.text.startswith("the learning rate that prodigy found: ")
    ]
    n_taken: list[Event] = []
    with pytest.raises(Interrupted):
        train(
            folder, tiny_base, tmp_path / "cut", stop_asked=lambda: len(n_taken) == 5,
            tell=lambda e: n_taken.append(e) if isinstance(e, Step) else None, **more,
        )  # fmt: skip
    resumed = train(folder, tiny_base, tmp_path / "cut", resume=True, **more)
    assert resumed.file.read_bytes() == whole.file.read_bytes()


def test_ten_steps_are_five_and_a_kill_and_five(pictures: Callable[..., Path], tiny_base: Path, tmp_path: Path) -> None:
    folder = pictures(9)
    whole = deltaw.train(
        folder, base=str(tiny_base), out=tmp_path / "whole", steps=10, batch=2, rank=2, lr=1e-2,
        settings=(*QUICK_SETTINGS, *TO_THE_BIT),
    )  # fmt: skip
    out = tmp_path / "killed"
    command = [sys.executable, "-c", RUN, str(folder), str(tiny_base), str(out)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    for line in process.stdout:
        if line.split() == ["Step", "7"]:
            process.send_signal(signal.SIGKILL)
            break
    assert process.wait() == -signal.SIGKILL
    process.stdout.close()
    assert not (out / "blocks.safetensors").exists()
    subprocess.run([*command, "resume"], check=True, stdout=subprocess.DEVNULL)
    assert (out / "blocks.safetensors").read_bytes() == whole.file.read_bytes()
    steps = [
        json.loads(line)["step"] for line in (out / "events.jsonl").read_text().splitlines() if '"step"' in line[:20]
    ]
    assert steps[-5:] == [6, 7, 8, 9, 10], "it went on after the saved step 5"


def test_stopping_saves_and_resuming_gives_the_same_file(
    pictures: Callable[..., Path], tiny_base: Path, tmp_path: Path
) -> None:
    folder = pictures(3)
    whole = train(folder, tiny_base, tmp_path / "whole", TO_THE_BIT)
    heard: list[Event] = []
    with pytest.raises(Interrupted, match="after step 3 of 4") as caught:
        train(folder, tiny_base, tmp_path / "out", TO_THE_BIT, tell=heard.append,
              stop_asked=lambda: sum(isinstance(e, Step) for e in heard) == 3)  # fmt: skip
    assert caught.value.exit_code == 130
    assert (tmp_path / "out" / "snapshots" / "blocks-000003.safetensors").is_file()
    resumed = deltaw.train(folder, out=tmp_path / "out", resume=True)
    assert resumed.file.read_bytes() == whole.file.read_bytes(), "options come from run.toml"


@pytest.mark.parametrize("change", ["lr", "pictures"])
def test_another_run_is_not_continued(
    pictures: Callable[..., Path], tiny_base: Path, tmp_path: Path, change: str
) -> None:
    folder = pictures(3)
    train(folder, tiny_base, tmp_path / "out")
    if change == "pictures":
        (folder / "p00.txt").write_text("something else")
    more = {"lr": 5e-3} if change == "lr" else {}
    with pytest.raises(UsageError, match=change):
        deltaw.train(folder, out=tmp_path / "out", resume=True, **more)


def test_run_toml_repeats_the_run(pictures: Callable[..., Path], tiny_base: Path, tmp_path: Path) -> None:
    folder = pictures(3)
    first = train(folder, tiny_base, tmp_path / "one", TO_THE_BIT)
    config = tmp_path / "one" / "run.toml"
    assert tomllib.loads(config.read_text())["steps"] == 4
    again = deltaw.train(folder, config=config, out=tmp_path / "two")
    assert again.file.read_bytes() == first.file.read_bytes()


def test_a_full_result_folder_is_left_alone(pictures: Callable[..., Path], tiny_base: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.txt").write_text("keep")
    with pytest.raises(UsageError, match="not empty"):
        train(pictures(3), tiny_base, tmp_path / "out")
    assert [p.name for p in (tmp_path / "out").iterdir()] == ["mine.txt"]


def test_the_folder_of_pictures_is_no_result_folder(pictures: Callable[..., Path], tiny_base: Path) -> None:
    folder = pictures(3)
    before = sorted(folder.iterdir())
    with pytest.raises(UsageError, match="folder of pictures"):
        train(folder, tiny_base, folder)
    assert sorted(folder.iterdir()) == before


def test_nothing_to_resume_is_said(pictures: Callable[..., Path], tiny_base: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no run to resume"):
        train(pictures(3), tiny_base, tmp_path / "out", resume=True)


def test_strict_refuses_a_skipped_picture(pictures: Callable[..., Path], tiny_base: Path, tmp_path: Path) -> None:
    folder = pictures(3)
    (folder / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n nothing more")
    with pytest.raises(InputError, match=r"broken\.png"):
        train(folder, tiny_base, tmp_path / "strict", strict=True)
    report = train(folder, tiny_base, tmp_path / "lenient")
    assert "broken.png" in (report.folder / "report.html").read_text()


def test_all_wrong_options_are_said_at_once(pictures: Callable[..., Path], tmp_path: Path) -> None:
    with pytest.raises(ManyErrors) as caught:
        deltaw.train(pictures(3), steps=0, settings=("cilp=1", "batch=two"))
    assert len(caught.value.errors) == 3
    assert "did you mean clip?" in str(caught.value)


def test_a_result_without_effect_is_refused(pictures: Callable[..., Path], tiny_base: Path, tmp_path: Path) -> None:
    with pytest.raises(UnverifiedError, match="changes nothing") as caught:
        train(pictures(3), tiny_base, tmp_path / "out", lr=1e-45, settings=("weight_decay=0.0",))
    assert caught.value.exit_code == 4
    assert not (tmp_path / "out" / "blocks.safetensors").exists()


def test_visits_are_the_promised_ones(
    pictures: Callable[..., Path], tiny_base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[int] = []
    original = stepping.batch

    def counting(work: Work, chosen: list[int], step: int) -> Batch:
        seen.extend(chosen)
        return original(work, chosen, step)

    monkeypatch.setattr(stepping, "batch", counting)
    train(pictures(5), tiny_base, tmp_path / "out", steps=5, batch=3)
    assert sorted(seen) == sorted([0, 1, 2, 3, 4] * 3), "5 steps of 3 are 3 rounds over 5 pictures"


def test_rectangular_pictures_train_in_their_buckets(
    paint: Callable[..., Path], tiny_base: Path, tmp_path: Path
) -> None:
    for i, size in enumerate([(64, 64), (128, 64), (64, 128), (100, 60)]):
        paint(tmp_path / "mixed" / f"{i}.png", i, size, "a thing")
    report = train(tmp_path / "mixed", tiny_base, tmp_path / "out", steps=8)
    assert report.proof.effect > 0
