"""Comparing files: paired losses on the user's pictures, strengths, drift, nearest pictures, one sentence."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from PIL import Image

import deltaw
from deltaw import cli, formats, inject
from deltaw.delta import Delta
from deltaw.errors import InputError, UsageError
from deltaw.events import Event, Note, Table, Warn
from deltaw.families import bases
from deltaw.judge import seen
from deltaw.verbs import contest
from deltaw.verbs.painter import Painter

FEW = {"steps": 2, "dtype": "float32", "device": "cpu"}


@pytest.fixture(scope="module")
def loras(tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Noise in every adapter, little and much: neither knows anything, one does less harm."""
    base, folder = bases.open_base(tiny_base), tmp_path_factory.mktemp("loras")
    files = []
    for name, size in (("little", 0.02), ("much", 1.0)):
        generator = torch.Generator().manual_seed(0)
        wrapped = inject.wrap(base.denoiser(torch.device("cpu"), torch.float32), base.targets, 2, 2.0, generator)
        with torch.no_grad():
            for module in wrapped.modules.values():
                module.up.normal_(0, size, generator=generator)
        taken = inject.take(wrapped, base.family, "unet")
        files.append(folder / f"{name}.safetensors")
        Delta(taken.family, taken.updates, ("blocky style",)).save(files[-1])
    return files[0], files[1]


def test_a_file_that_was_trained_on_the_reference_is_named(
    tiny_base: Path, loras: tuple[Path, Path], pictures: Callable[..., Path], tmp_path: Path
) -> None:
    folder = pictures(5)
    digests = [hashlib.sha256(file.read_bytes()).hexdigest() for file in sorted(folder.glob("*.png"))]
    knows = tmp_path / "knows.safetensors"
    delta, _ = formats.load(loras[0], shapes=formats.shapes_of(tiny_base))
    delta.with_metadata({seen.ENTRY: seen.pack([*digests[:2], "0" * 64])}).save(knows)
    heard: list[Event] = []
    deltaw.compare([knows, (knows, 0.5), loras[1]], reference=folder, base=tiny_base, prompts=["a house"],
                   out=tmp_path / "out", tell=heard.append, **FEW)  # fmt: skip
    said = [e.text for e in heard if isinstance(e, Warn) and "was trained on" in e.text]
    assert [text[: text.index(",")] for text in said] == [
        "knows.safetensors was trained on 2 of the 5 reference pictures"
    ]


def test_files_and_strengths_are_judged_on_the_users_pictures(
    tiny_base: Path, loras: tuple[Path, Path], pictures: Callable[..., Path], tmp_path: Path
) -> None:
    heard: list[Event] = []
    made = deltaw.compare(
        [loras[0], f"{loras[1]}:0.5", (loras[1], 1.0), (loras[0], 0.0)], reference=pictures(5), base=tiny_base,
        prompts=["a house, blocky style"], out=tmp_path / "out", tell=heard.append, **FEW,
    )  # fmt: skip
    assert [c.name for c in made.contenders] == ["little", "much:0.5", "much", "little:0"]
    assert made.n_pictures == 5
    zero = made.contenders[3]
    assert zero.score is not None
    assert zero.score.change.mean == 0.0
    assert zero.drift.called == zero.drift.plain == 0.0
    little, half, whole = (c.drift.called for c in made.contenders[:3])
    assert 0 < little < half < whole
    losses = [c.score.loss for c in made.contenders if c.score]
    best = losses.index(min(losses))
    assert made.contenders[best].behind is not None
    assert made.contenders[best].behind.mean == 0.0
    assert len(made.contenders[0].nearest) == 2, "the prompt and the words alone; not the one that does not call it up"
    [table] = [e for e in heard if isinstance(e, Table)]
    assert len(table.rows) == 4
    assert made.advice in [e.text for e in heard if isinstance(e, Note)]
    with Image.open(tmp_path / "out" / "sheet.png") as sheet:
        assert sheet.width > 3 * 144, "prompt, not called, called alone"
        assert sheet.height > 5 * 144, "the base and four contenders"
    page = (tmp_path / "out" / "report.html").read_text()
    assert "much:0.5" in page
    assert "data:image/png" in page
    found = json.loads((tmp_path / "out" / "compare.json").read_text())
    assert found["contenders"][1]["strength"] == 0.5
    assert str(tmp_path) not in json.dumps(found)


def test_a_file_trained_on_the_pictures_wins(
    tiny_base: Path, loras: tuple[Path, Path], pictures: Callable[..., Path], tmp_path: Path
) -> None:
    folder = pictures(3)
    report = deltaw.train(
        folder, base=str(tiny_base), out=tmp_path / "run", steps=60, batch=3, rank=4, lr=2e-2,
        settings=("sample_steps=1", "snapshots=2", 'prompts=["a house"]', "dtype=float32", "stop=false"),
    )  # fmt: skip
    made = deltaw.compare([loras[1], report.file], reference=folder, base=tiny_base, out=tmp_path / "out", **FEW)
    assert made.best == "blocks"
    assert made.advice.startswith("Use blocks: loss -")
    assert made.contenders[0].behind is not None
    assert made.contenders[0].behind.mean > 0
    assert not made.contenders[0].as_good


def test_without_reference_there_is_drift_and_a_sheet(
    tiny_base: Path, loras: tuple[Path, Path], tmp_path: Path
) -> None:
    made = deltaw.compare(list(loras), base=tiny_base, out=tmp_path / "out", seeds=2, **FEW)
    assert (made.best, made.n_pictures, made.limits) == ("", 0, None)
    assert "give --reference" in made.advice
    assert made.advice.startswith("much moves predictions most")
    found = json.loads((tmp_path / "out" / "compare.json").read_text())
    assert [c["seed"] for c in found["columns"]][:4] == [0, 1, 2, 3]
    assert all("blocky style" in c["prompt"] for c in found["columns"] if c["called"])


def test_captions_that_do_not_call_a_file_up_are_said(
    tiny_base: Path, loras: tuple[Path, Path], paint: Callable[..., Path], tmp_path: Path
) -> None:
    paint(tmp_path / "plain" / "a.png", 0, caption="a thing")
    heard: list[Event] = []
    made = deltaw.compare(
        [loras[0]], reference=tmp_path / "plain", base=tiny_base, out=tmp_path / "out", tell=heard.append, **FEW
    )
    assert any("do not hold 'blocky style'" in e.text for e in heard if isinstance(e, Warn))
    assert made.contenders[0].score is not None
    assert (
        json.loads((tmp_path / "out" / "compare.json").read_text())["contenders"][0]["score"]["change"]["low"] is None
    )


def test_bad_requests_are_refused(tiny_base: Path, loras: tuple[Path, Path], tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="nothing to compare"):
        deltaw.compare([], base=tiny_base, out=tmp_path / "out")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").write_text("keep")
    with pytest.raises(UsageError, match="not empty"):
        deltaw.compare([loras[0]], base=tiny_base, out=tmp_path / "full")
    with pytest.raises(InputError, match=r"absent\.safetensors"):
        deltaw.compare([tmp_path / "absent.safetensors"], base=tiny_base, out=tmp_path / "out")


def test_the_command_takes_what_the_function_takes(
    tiny_base: Path, loras: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    words = ["compare", f"{loras[0]}:0.5", loras[1], "--prompt", "a cat", "--base", tiny_base, "--out", tmp_path / "out",
             "--steps", 1, "--dtype", "float32", "--json"]  # fmt: skip
    monkeypatch.setattr("sys.argv", ["deltaw", *map(str, words)])
    cli.main()
    events = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    [table] = [e for e in events if e["event"] == "table"]
    assert [row[0] for row in table["rows"]] == ["little:0.5", "much"]


def test_questions_are_answered_alike_however_many_at_once(tiny_base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    painter = Painter(bases.open_base(tiny_base), "cpu", "float32")
    x, times, text = torch.randn(5, 4, 8, 8), torch.arange(5) * 100, torch.randn(5, *painter.base.text_shape)
    with torch.no_grad():
        whole = contest._predict(painter, x, times, text)
        monkeypatch.setattr("deltaw.verbs.painter.CPU_POSITIONS", 2 * 8 * 8)
        parts = contest._predict(painter, x, times, text)
    assert painter.at_once(8 * 8) == 2
    assert torch.allclose(parts, whole, atol=1e-5)
