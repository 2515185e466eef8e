"""The plan: the user's value, else the base's, else a rule's, each with its reason."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from deltaw import options
from deltaw.data import folder
from deltaw.data.folder import Dataset, Picture
from deltaw.errors import UsageError
from deltaw.families import bases, solvers
from deltaw.training import plan, run, sampler, wording
from deltaw.zoo import bundled_base


def make(pictures: Path, base: Path, **flags: object) -> plan.Plan:
    return plan.make(options.parse(flags), bases.open_base(base), folder.scan(pictures))


def test_every_value_has_an_origin_and_a_reason(pictures: Callable[..., Path], tiny_base: Path) -> None:
    made = make(pictures(10), tiny_base, lr="2e-4", rank="4")
    assert all(value.origin and value.reason for value in made.values.values())
    assert made.values["lr"] == plan.Value(2e-4, "--lr", "you asked for it")
    assert made.values["alpha"].value == 4.0, "alpha follows the rank"


def test_the_base_recommends(pictures: Callable[..., Path]) -> None:
    made = make(pictures(10), bundled_base())
    assert (made.settings.rank, made.settings.batch, made.values["rank"].origin) == (8, 16, "base")
    assert made.settings.min_snr_gamma == 0, "the base predicts v"


def test_the_sheet_is_drawn_as_generate_draws(pictures: Callable[..., Path], tiny_base: Path) -> None:
    for base in (tiny_base, bundled_base()):
        settings = make(pictures(3), base).settings
        assert (settings.sampler, settings.sample_steps) == solvers.chosen(bases.open_base(base))
    own = make(pictures(3), bundled_base(), sampler="base")
    assert (own.settings.sampler, own.settings.sample_steps) == ("base", 25)
    assert own.values["sampler"].reason == "you asked for it"


def test_min_snr_is_on_for_a_base_that_predicts_noise(pictures: Callable[..., Path], tiny_base: Path) -> None:
    assert make(pictures(3), tiny_base).settings.min_snr_gamma == 5.0


@pytest.mark.parametrize(("n", "held_out"), [(1, 0), (7, 0), (8, 1), (28, 3), (200, 8)])
def test_a_tenth_is_held_out_where_there_is_enough(n: int, held_out: int) -> None:
    count, _ = plan._held_out_default(n)
    assert count == held_out
    assert len(plan._held_out(count, range(n), _files(n))) == held_out


def _files(n: int, same: int = 0) -> Dataset:
    """n pictures, the first `same` of which are one file."""
    digests = ["same"] * same + [f"digest {i}" for i in range(same, n)]
    pictures = tuple(Picture(Path(f"{i}.png"), f"{i}.png", d, (64, 64), "", "none", ()) for i, d in enumerate(digests))
    return Dataset(Path(), pictures, (), 0, ())


def test_no_copy_of_a_trained_picture_is_held_out() -> None:
    assert set(plan._held_out(2, range(12), _files(12, same=8))) <= {8, 9, 10, 11}
    assert len(plan._held_out(2, range(12), _files(12, same=12))) == 2  # all are one file: there is no other choice


def test_of_pictures_that_look_alike_the_first_is_used_where_asked(
    pictures: Callable[..., Path], tiny_base: Path
) -> None:
    folder = pictures(5)
    with Image.open(folder / "p01.png") as image:
        image.resize((96, 96)).save(folder / "p01 larger.png")
        image.transpose(Image.Transpose.FLIP_LEFT_RIGHT).save(folder / "p04 mirrored.png")
    counted = make(folder, tiny_base)
    assert len(counted.training) == 7
    given = options.parse({"base": str(tiny_base)}, ["duplicates=once"])
    _, dataset, once = run.look(folder, given, strict=False, tell=lambda _: None)
    names = {dataset.pictures[i].name for i in once.training}
    assert names == {"p00.png", "p01 larger.png", "p02.png", "p03.png", "p04.png"}
    assert once.notes[0] == "p01.png, p04 mirrored.png: left out, since p01 larger.png shows the same"


def test_holding_everything_out_is_refused() -> None:
    with pytest.raises(UsageError, match="no picture to train on"):
        plan._held_out(3, range(3), _files(3))


@pytest.mark.parametrize(
    ("caption", "wanted"),
    [("a cat", "zxq, a cat"), ("", "zxq"), ("a ZXQ cat", "a ZXQ cat")],
)
def test_the_trigger_is_added_once(caption: str, wanted: str) -> None:
    assert wording.with_trigger(caption, "zxq") == wanted
    assert wording.with_trigger(caption, "") == caption


def test_prodigys_rate_is_a_factor_whatever_the_base_recommends(pictures: Callable[..., Path], tiny_base: Path) -> None:
    found = pictures(9)

    def rate(base: Path, **given: object) -> plan.Value:
        return plan.make(options.parse(given), bases.open_base(base), folder.scan(found)).values["lr"]

    assert rate(bundled_base()).origin == "base"
    assert rate(bundled_base(), optimizer="prodigy") == plan.Value(
        1.0, "plan", "a factor of the rate that Prodigy finds by itself"
    )
    assert rate(tiny_base, optimizer="prodigy", lr=0.5).value == 0.5
    assert rate(tiny_base).value == 1e-4
    with pytest.raises(UsageError, match="unknown optimizer 'sgd'") as caught:
        rate(tiny_base, optimizer="sgd")
    assert caught.value.expected == "adamw, prodigy"


def test_the_common_ending_is_what_most_captions_share() -> None:
    assert wording.common_ending(["a, red, x style", "b, x style", "c, x style"]) == "x style"
    assert wording.common_ending(["a, x style", "b, y style", "c, x style"]) == ""
    assert wording.common_ending(["a, x style"]) == ""
    assert wording.common_ending(["a, black, x style", "b, c, black, x style", "d, black, x style"]) == "black, x style"
    assert wording.common_ending(["", ""]) == ""


def test_marks_end_with_the_last_step() -> None:
    assert plan.marks(134, 5) == (27, 54, 80, 107, 134)
    assert plan.marks(3, 5) == (1, 2, 3)


def test_a_batch_larger_than_the_set_is_said(pictures: Callable[..., Path], tiny_base: Path) -> None:
    made = make(pictures(3), tiny_base, batch="16")
    assert any("larger than a bucket" in note for note in made.notes)


def test_too_few_steps_to_see_every_picture_is_said(pictures: Callable[..., Path], tiny_base: Path) -> None:
    made = make(pictures(7), tiny_base, batch="1", steps="3")
    assert any("4 pictures are never seen" in note for note in made.notes)


def test_parts_of_a_step_are_of_one_size(pictures: Callable[..., Path], tiny_base: Path) -> None:
    found = pictures(3)
    assert make(found, tiny_base, batch=6).settings.micro_batch == 6
    assert [sampler.micro_batches(n) for n in (1, 7, 12, 16)] == [[1], [7, 1], [12, 6, 4, 3, 2, 1], [16, 8, 4, 2, 1]]
    with pytest.raises(UsageError, match="a step of 6 pictures is not made of parts of 4") as caught:
        plan.make(options.parse({"batch": 6}, ["micro_batch=4"]), bases.open_base(tiny_base), folder.scan(found))
    assert caught.value.expected == "a divisor of batch: 6, 3, 2, 1"
