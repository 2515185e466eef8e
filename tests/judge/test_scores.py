"""Paired scores and their intervals."""

from __future__ import annotations

import math

import pytest
import torch

from deltaw.judge import scores


def test_a_score_is_paired() -> None:
    base = torch.tensor([[1.0, 3.0], [2.0, 2.0], [3.0, 5.0], [4.0, 4.0]], dtype=torch.float64)
    score = scores.score(7, base * 0.9, base, torch.ones_like(base))
    assert (score.step, score.n_better, score.n) == (7, 4, 4)
    assert abs(score.change.mean + 0.1) < 1e-9
    assert score.change.low < score.change.mean < score.change.high < 0
    assert score.weighted == score.change


def test_weights_decide_which_times_count() -> None:
    base = torch.ones(3, 2, dtype=torch.float64)
    losses = torch.tensor([[0.5, 1.5]] * 3, dtype=torch.float64)
    score = scores.score(1, losses, base, torch.tensor([[3.0, 1.0]] * 3, dtype=torch.float64))
    assert score.change.mean == pytest.approx(0.0)
    assert score.weighted.mean == pytest.approx(-0.25)


@pytest.mark.parametrize(
    ("degrees", "expected"), [(1, 12.706), (2, 4.303), (3, 3.182), (5, 2.571), (10, 2.228), (30, 2.042), (1000, 1.962)]
)
def test_t_is_students(degrees: int, expected: float) -> None:
    assert scores.t95(degrees) == pytest.approx(expected, rel=0.01)


def test_the_interval_covers_the_mean_95_times_in_100_even_of_three() -> None:
    generator = torch.Generator().manual_seed(0)
    drawn = torch.randn(2000, 3, generator=generator, dtype=torch.float64)
    found = [scores.interval(row) for row in drawn]
    assert 0.935 < sum(i.low < 0 < i.high for i in found) / len(found) < 0.965


def test_one_picture_has_no_interval() -> None:
    assert math.isnan(scores.interval(torch.ones(1)).low)
