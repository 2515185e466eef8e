"""The end of a run: which snapshot becomes the file, when a run stops by itself, what is said, what resuming does."""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch

import deltaw
from deltaw import tensorfile
from deltaw.errors import Interrupted
from deltaw.events import Event, Note, Phase, Step, Warn
from deltaw.judge.questions import LEAST_TIMES, Answers
from deltaw.training import asking, state
from deltaw.training.judging import Judge
from deltaw.training.stepping import Work
from deltaw.zoo import bundled_base
from tests.spoilt import change

SETTINGS = ("sample_steps=1", "snapshots=5", 'prompts=["a house, blocky style"]', "dtype=float32")
OVERFIT = (0.90, 0.95, 0.97, 0.99, 1.0)
FALLING = (0.98, 0.95, 0.92, 0.89, 0.86)


@pytest.fixture
def curve(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Lets the answers of a run follow a curve, by how often was asked: the base, then mark by mark, then the means."""

    def follow(means: Sequence[float], mean_of_two: float = 1.0) -> None:
        originals = Judge.losses, Judge._answers

        def on_curve(self: Judge, real: torch.Tensor) -> torch.Tensor:
            asked = len(self.probes)
            loss = 1.0 if asked == 0 else means[asked - 1] if asked <= len(means) else mean_of_two
            if self.means or (asked and max(self.probes) == self.session.plan.settings.steps):
                loss = mean_of_two
            grain = torch.Generator().manual_seed(asked)
            return loss + 0.002 * torch.randn(real.shape, generator=grain, dtype=torch.float64)

        def losses(self: Judge, work: Work) -> torch.Tensor:
            return on_curve(self, originals[0](self, work))

        def answers(self: Judge, work: Work) -> Answers:
            real = originals[1](self, work)
            return dataclasses.replace(real, losses=on_curve(self, real.losses))

        monkeypatch.setattr(Judge, "losses", losses)
        monkeypatch.setattr(Judge, "_answers", answers)

    return follow


def train(folder: Path, base: Path, out: Path, heard: list[Event], *settings: str, **more: object) -> deltaw.Report:
    options = {"steps": 10, "batch": 2, "rank": 2, "lr": 1e-2, **more}
    return deltaw.train(folder, base=str(base), out=out, settings=(*SETTINGS, *settings), tell=heard.append, **options)


def _same(one: Path, other: Path) -> bool:
    mine, its = tensorfile.read(one), tensorfile.read(other)
    return set(mine) == set(its) and all(torch.equal(mine[name], its[name]) for name in mine)


def test_a_run_that_overfits_stops_by_itself_and_gives_its_best_snapshot(
    pictures: Callable[..., Path], tiny_base: Path, tmp_path: Path, curve: Callable[..., None]
) -> None:
    curve(OVERFIT)
    heard: list[Event] = []
    report = train(pictures(9), tiny_base, tmp_path / "out", heard)
    assert [e.step for e in heard if isinstance(e, Step)] == [1, 2, 3, 4, 5, 6], "stopped two marks after the best"
    assert (report.recommended_step, report.stopped) == (2, 6)
    assert _same(report.file, tmp_path / "out" / "snapshots" / "blocks-000002.safetensors")
    assert tensorfile.read_header(report.file).metadata["ss_steps"] == "2"
    assert 0 < report.proof.rounding < 0.01, "compared with what was trained, not with what was rounded"
    assert any("stopped at step 6 of 10" in e.text for e in heard if isinstance(e, Note))
    assert "fewer steps are enough" in report.verdict
    assert report.verdict in (tmp_path / "out" / "report.html").read_text()


def test_the_last_snapshot_becomes_the_file_where_it_is_asked_for(
    pictures: Callable[..., Path], tiny_base: Path, tmp_path: Path, curve: Callable[..., None]
) -> None:
    curve(OVERFIT)
    heard: list[Event] = []
    report = train(pictures(9), tiny_base, tmp_path / "out", heard, "pick=last", stop=False)
    assert not any(isinstance(e, Phase) and "means" in e.name for e in heard)
    assert report.recommended_step == 10
    assert _same(report.file, tmp_path / "out" / "snapshots" / "blocks-000010.safetensors")
    assert "it is the last snapshot, as asked for, and its loss is" in report.verdict
    assert "above step 2's" in report.verdict


def test_a_stopped_run_goes_no_further_when_resumed_unless_asked(
    pictures: Callable[..., Path], tiny_base: Path, tmp_path: Path, curve: Callable[..., None]
) -> None:
    curve(OVERFIT)
    folder, heard = pictures(9), []
    first = train(folder, tiny_base, tmp_path / "out", [])
    before = first.file.read_bytes()
    again = deltaw.train(folder, out=tmp_path / "out", resume=True, tell=heard.append)
    assert not [e for e in heard if isinstance(e, Step)]
    assert again.file.read_bytes() == before
    further = deltaw.train(folder, out=tmp_path / "out", resume=True, settings=("stop=false",), tell=heard.append)
    assert [e.step for e in heard if isinstance(e, Step)] == [7, 8, 9, 10]
    assert (further.recommended_step, further.stopped) == (2, 0)


def test_a_resumed_run_with_other_marks_asks_as_many_questions_as_before(
    pictures: Callable[..., Path], tiny_base: Path, tmp_path: Path
) -> None:
    """The plan would ask fewer at more marks, and answers of both could not be compared."""
    folder, heard = pictures(9), []
    stop = lambda: sum(isinstance(e, Step) for e in heard) == 12  # noqa: E731
    with pytest.raises(Interrupted):
        train(folder, tiny_base, tmp_path / "out", heard, "snapshots=2", steps=20, batch=16, stop_asked=stop)
    report = deltaw.train(folder, out=tmp_path / "out", resume=True, settings=("snapshots=5", "stop=false"))
    assert [score.step for score in report.scores] == [10, 16, 20]
    history = state.load(tmp_path / "out" / "state" / "state.safetensors").history
    assert {name: tuple(t.shape) for name, t in history.items() if name.startswith("probe/")} == {
        f"probe/{step}": (1, 2 * LEAST_TIMES) for step in (0, 10, 16, 20)
    }


def test_a_run_stopped_before_its_first_mark_goes_on(
    pictures: Callable[..., Path], tiny_base: Path, tmp_path: Path
) -> None:
    folder, heard = pictures(9), []
    with pytest.raises(Interrupted):
        train(folder, tiny_base, tmp_path / "out", heard, stop_asked=lambda: any(isinstance(e, Step) for e in heard))
    assert len([e for e in heard if isinstance(e, Step)]) == 1
    report = deltaw.train(folder, out=tmp_path / "out", resume=True)
    assert [score.step for score in report.scores][:1] == [2]


def test_a_run_stopped_before_its_first_step_says_so_and_can_be_started_again(
    pictures: Callable[..., Path], tiny_base: Path, tmp_path: Path
) -> None:
    folder = pictures(9)
    with pytest.raises(Interrupted, match="before the first step"):
        train(folder, tiny_base, tmp_path / "out", [], stop_asked=lambda: True)
    assert train(folder, tiny_base, tmp_path / "out", []).file.is_file()


def test_until_forbids_an_earlier_stop(
    pictures: Callable[..., Path], tiny_base: Path, tmp_path: Path, curve: Callable[..., None]
) -> None:
    curve(OVERFIT)
    report = train(pictures(9), tiny_base, tmp_path / "out", [], "until=7")
    assert (report.recommended_step, report.stopped) == (2, 8)
    longer = train(pictures(9), tiny_base, tmp_path / "longer", [], "until=20", "snapshots=2")
    assert longer.n_steps == 20, "until makes a run as long as it asks for"


def test_an_underfit_run_says_that_more_steps_would_pay(
    pictures: Callable[..., Path], tiny_base: Path, tmp_path: Path, curve: Callable[..., None]
) -> None:
    curve(FALLING)
    report = train(pictures(9), tiny_base, tmp_path / "out", [])
    assert (report.recommended_step, report.stopped) == (10, 0)
    assert "more steps would pay, as the loss was still falling" in report.verdict
    assert "--steps 15 may lower it by another" in report.verdict


def test_a_mean_of_snapshots_that_wins_becomes_the_file(
    pictures: Callable[..., Path], tiny_base: Path, tmp_path: Path, curve: Callable[..., None]
) -> None:
    curve((0.95, 0.93, 0.92, 0.91, 0.909), mean_of_two=0.85)
    heard: list[Event] = []
    report = train(pictures(9), tiny_base, tmp_path / "out", heard)
    assert report.choice.best.n_averaged in asking.MEANS
    assert not _same(report.file, tmp_path / "out" / "snapshots" / "blocks-000010.safetensors")
    assert report.choice.best.name in (tmp_path / "out" / "report.html").read_text()
    assert any("leaves out" in e.text for e in heard if isinstance(e, Note)), "the error of its cut is told"
    tensors = tensorfile.read(report.file)
    assert max(t.shape[0] for name, t in tensors.items() if "lora_down" in name) == 2, "of the run's own rank"


def test_few_pictures_are_judged_by_moved_views_and_it_says_so(
    pictures: Callable[..., Path], tiny_base: Path, tmp_path: Path
) -> None:
    heard: list[Event] = []
    report = train(pictures(4), tiny_base, tmp_path / "out", heard)
    assert not report.held_out
    assert report.measured_on == "4 trained pictures, moved by a sixteenth, since there are too few to keep any out"
    assert report.measured_on in (tmp_path / "out" / "report.html").read_text()
    assert any("moved pictures' loss" in e.text for e in heard if isinstance(e, Note))


def test_the_report_holds_drift_and_copies_of_every_snapshot(
    pictures: Callable[..., Path], tiny_base: Path, tmp_path: Path
) -> None:
    report = train(pictures(9), tiny_base, tmp_path / "out", [], "stop=false")
    assert list(report.drifts) == [2, 4, 6, 8, 10]
    assert all(d.called > 0 for d in report.drifts.values())
    assert list(report.copies.nearest) == [f"step {s}" for s in (2, 4, 6, 8, 10)]
    assert all(len(found) == 2 for found in report.copies.nearest.values()), "the prompt, and the style words alone"


def test_the_last_training_takes_all_pictures_where_that_is_asked_for(
    pictures: Callable[..., Path], tiny_base: Path, tmp_path: Path, curve: Callable[..., None]
) -> None:
    curve(OVERFIT)
    heard: list[Event] = []
    report = train(pictures(9), tiny_base, tmp_path / "out", heard, "final_all=true")
    assert [e.step for e in heard if isinstance(e, Step)] == [1, 2, 3, 4, 5, 6, 1, 2], "as long as the choice took"
    assert (report.retrained, report.recommended_step) == (9, 2)
    assert not _same(report.file, tmp_path / "out" / "snapshots" / "blocks-000002.safetensors")
    assert tensorfile.read_header(report.file).metadata["ss_num_train_images"] == "9"
    assert "trained anew on all 9 pictures for 2 steps; without the held out ones: held-out loss" in report.verdict
    assert list(report.copies.nearest)[-1] == "all 9 pictures"
    before = report.file.read_bytes()
    again = deltaw.train(tmp_path / "blocks", out=tmp_path / "out", resume=True)
    assert again.file.read_bytes() == before


def test_a_base_that_says_another_prediction_than_it_makes_is_told(
    pictures: Callable[..., Path], tmp_path: Path
) -> None:
    folder = pictures(4)

    def warnings(base: Path, name: str) -> list[str]:
        heard: list[Event] = []
        quick = ("targets=attn1\\.to_q$", "held_out=0", "snapshots=1", "dtype=bfloat16")
        train(folder, base, tmp_path / name, heard, *quick, steps=1, batch=1)
        return [e.text for e in heard if isinstance(e, Warn) and "predicts" in e.text]

    assert warnings(bundled_base(), "true") == []
    false = Path(shutil.copytree(bundled_base(), tmp_path / "false-base"))
    change(false / "scheduler" / "scheduler_config.json", prediction_type="epsilon")
    (said,) = warnings(false, "false")
    assert said.startswith("the base says that it predicts noise and answers as one that predicts v")
    assert str(false / "scheduler" / "scheduler_config.json") in said
