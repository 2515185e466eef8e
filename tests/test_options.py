"""Options: declared once, read somewhere, checked strictly and all at once, documented."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path

import pytest

from deltaw import options
from deltaw.errors import InputError, ManyErrors, UsageError
from deltaw.options import TrainOptions
from deltaw.training.plan import Settings

ROOT = Path(__file__).parents[1]
READ_ELSEWHERE = {"ignore_room", "resume_anyway", "base", "out", "resume", "caption_encoding"}
"""Options that choose what the run works on and are read before there is a plan."""


def test_twelve_options_are_visible() -> None:
    visible = list(options.fields(TrainOptions, visible=True))
    assert visible == [
        "base", "out", "trigger", "steps", "rank", "alpha", "lr", "batch", "resolution", "seed", "dialect", "resume",
    ]  # fmt: skip


def test_every_option_is_a_setting_of_the_run_and_every_setting_is_read() -> None:
    names = {f.name for f in fields(Settings)}
    assert set(TrainOptions.model_fields) == names | READ_ELSEWHERE
    code = "\n".join(p.read_text() for p in (ROOT / "src" / "deltaw" / "training").glob("*.py") if p.name != "plan.py")
    code += (ROOT / "src" / "deltaw" / "training" / "plan.py").read_text().split("class _Chooser")[1]
    unread = [
        n
        for n in names
        if f"settings.{n}" not in code and f'choose.values["{n}"]' not in code and f'pick("{n}"' not in code
    ]
    assert not unread
    assert all(f"options.{name}" in code for name in READ_ELSEWHERE)


def test_every_option_is_documented() -> None:
    from docs.make_options import page

    assert (ROOT / "docs" / "options.md").read_text(encoding="utf-8") == page(), "run `python -m docs.make_options`"


def test_flags_win_over_set_and_set_over_the_file(tmp_path: Path) -> None:
    (tmp_path / "c.toml").write_text("steps = 1\nrank = 2\nlr = 0.1\n")
    given = options.parse({"lr": "0.05"}, ["rank=3"], tmp_path / "c.toml")
    assert (given.options.steps, given.options.rank, given.options.lr) == (1, 3, 0.05)
    assert given.origin == {"steps": str(tmp_path / "c.toml"), "rank": "--set rank", "lr": "--lr"}


def test_text_options_stay_text() -> None:
    given = options.parse({"trigger": "123"}, ["targets=1e-4", 'prompts=["a", "b"]'])
    assert (given.options.trigger, given.options.targets, given.options.prompts) == ("123", "1e-4", ["a", "b"])


@pytest.mark.parametrize(
    ("flags", "settings", "words"),
    [
        ({}, ["stpes=3"], "did you mean steps"),
        ({"batch": "0"}, [], "greater than or equal to 1"),
        ({"steps": "-1"}, [], "greater than or equal to 1"),
        ({"resolution": "513"}, [], "multiple of 8"),
        ({"lr": "fast"}, [], "valid number"),
        ({}, ["schedule=cosin"], "'cosine'"),
        ({}, ["clip"], "needs key=value"),
    ],
)
def test_mistakes_are_named(flags: dict[str, str], settings: list[str], words: str) -> None:
    with pytest.raises(UsageError) as caught:
        options.parse(flags, settings)
    assert words in str(caught.value)
    assert caught.value.exit_code == 2


@pytest.mark.parametrize(
    ("setting", "nearest"),
    [
        ("lr=1", "take 0.1"), ("lr=11", "take 0.1"), ("resolution=513", "take 512 or 520"), ("batch=0", "take 1"), ("steps=-1", "take 1"),
        ("steps=1e3", "take 1000"), ("dtype=fp16", "did you mean float16?"), ("lr='1e-4'", "without quotes: 0.0001"),
        ("steps=999999999999", "take 1000000"), ("duplicates=one", "did you mean once?"),
    ],
)  # fmt: skip
def test_the_nearest_valid_value_is_named(setting: str, nearest: str) -> None:
    with pytest.raises(UsageError) as told:
        options.parse({}, [setting])
    assert nearest in told.value.advice
    assert setting.split("=")[0] in told.value.where


def test_the_largest_rate_is_the_optimizers() -> None:
    given = options.parse({}, ["lr=1", "optimizer=prodigy"]).options
    assert (given.lr, given.optimizer) == (1.0, "prodigy")
    with pytest.raises(
        UsageError, match="lr = 11 is refused: that of prodigy should be less than or equal to 10"
    ) as told:
        options.parse({"lr": 11.0}, ["optimizer=prodigy"])
    assert (told.value.where, told.value.advice) == ("--lr", "take 10")


def test_a_rate_that_is_too_large_is_named_beside_other_mistakes() -> None:
    with pytest.raises(ManyErrors) as caught:
        options.parse({}, ["lr=1", "steps=-1"])
    assert {e.where for e in caught.value.errors} == {"--set lr", "--set steps"}


@pytest.mark.parametrize("setting", ["alpha=inf", "clip=nan", "lr=inf", "seed=99999999999999999999"])
def test_numbers_that_would_fail_late_are_refused(setting: str) -> None:
    with pytest.raises(UsageError, match="is refused"):
        options.parse({}, [setting])


def test_a_number_written_as_text_in_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "c.toml").write_text('lr = "1e-4"\nsteps = 2.5\n')
    with pytest.raises(ManyErrors) as caught:
        options.parse({}, (), tmp_path / "c.toml")
    assert [e.where for e in caught.value.errors] == [str(tmp_path / "c.toml")] * 2


@pytest.mark.parametrize("content", ["a = ", "a = 1\na = 2\n", "\x00"])
def test_a_broken_file_is_named(tmp_path: Path, content: str) -> None:
    (tmp_path / "c.toml").write_text(content)
    with pytest.raises(InputError, match=r"c\.toml"):
        options.parse({}, (), tmp_path / "c.toml")
    with pytest.raises(InputError, match="cannot be read"):
        options.parse({}, (), tmp_path / "absent.toml")


@pytest.mark.parametrize(
    ("word", "wanted"),
    [
        ("a.safetensors", ("a.safetensors", 1.0)),
        ("a.safetensors:0.5", ("a.safetensors", 0.5)),
        ("a:-1", ("a", -1.0)),
        ("c:x", ("c:x", 1.0)),
    ],
)
def test_files_with_weights(word: str, wanted: tuple[str, float]) -> None:
    path, strength = options.weighted(word)
    assert (str(path), strength) == wanted
