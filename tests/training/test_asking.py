"""Whom the questions are about and how many there are; what the sheet draws."""

from __future__ import annotations

import itertools
from types import SimpleNamespace
from typing import Any

import pytest

from deltaw.judge.columns import columns, without
from deltaw.training import asking


def _plan(n: int, held_out: int, steps: int, batch: int) -> Any:
    training = tuple(range(held_out, n))
    return SimpleNamespace(
        settings=SimpleNamespace(steps=steps, batch=batch), training=training, held_out=tuple(range(held_out)),
        marks=(1, 2, 3, 4, 5),
    )  # fmt: skip


@pytest.mark.parametrize(
    ("n", "held_out", "steps", "batch", "n_times"),
    [(28, 3, 134, 16, 16), (28, 3, 40, 1, 8), (28, 3, 1000, 16, 32), (100, 8, 400, 16, 24), (4, 0, 60, 16, 8)],
)
def test_questions_take_a_share_of_the_run(n: int, held_out: int, steps: int, batch: int, n_times: int) -> None:
    plan = _plan(n, held_out, steps, batch)
    assert asking.n_times(plan) == n_times
    if n_times > 8:
        spent = asking.n_rounds(plan) * asking.n_questions(plan)
        assert spent <= asking.SHARE * asking.FORWARDS_A_STEP * steps * batch


def test_at_most_sixteen_pictures_are_asked_about_evenly_spread() -> None:
    asked = asking.pictures(_plan(100, 0, 100, 1))
    assert len(asked) <= 16
    assert len({b - a for a, b in itertools.pairwise(asked)}) == 1


@pytest.mark.parametrize(
    ("prompt", "words", "left"),
    [
        ("red apple, inkline style", "inkline style", "red apple"),
        ("zxq, a dog, sitting", "zxq", "a dog, sitting"),
        ("a ZXQ dog", "zxq", "a dog"),
        ("inkline style", "inkline style", ""),
    ],
)
def test_calling_words_are_taken_out(prompt: str, words: str, left: str) -> None:
    assert without(prompt, words) == left


def test_columns_end_with_one_that_is_not_called_and_the_words_alone() -> None:
    made = columns(("a cat, x style", "a dog, x style"), "x style", 5, n_seeds=2)
    assert [(c.prompt, c.seed, c.called) for c in made] == [
        ("a cat, x style", 5, True), ("a cat, x style", 6, True), ("a dog, x style", 7, True), ("a dog, x style", 8, True),
        ("a cat", 5, False), ("x style", 5, True),
    ]  # fmt: skip
    assert len(columns(("a cat",), "", 0)) == 1
