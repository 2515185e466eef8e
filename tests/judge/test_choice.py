"""Which snapshot is recommended, when more steps would pay, when they have stopped paying."""

from __future__ import annotations

import math
from collections.abc import Sequence

import pytest
import torch

from deltaw.judge import choice
from deltaw.judge.choice import Candidate


def _run(means: Sequence[float], spread: float = 0.001, n: int = 3, k: int = 16, seed: int = 0) -> list[Candidate]:
    """Snapshots every 10 steps; pictures and questions differ much, snapshots on the same question by `spread`."""
    generator = torch.Generator().manual_seed(seed)
    hard = 0.2 * torch.randn(n, k, generator=generator, dtype=torch.float64)
    return [
        Candidate(10 * (i + 1), mean + hard + spread * torch.randn(n, k, generator=generator, dtype=torch.float64))
        for i, mean in enumerate(means)
    ]


def test_the_lowest_is_recommended_while_the_loss_falls() -> None:
    made = choice.choose(_run([1.0, 0.8, 0.7, 0.6]))
    assert (made.best.step, made.reason) == (40, "it has the lowest loss")


def test_the_earliest_within_noise_is_recommended_once_it_is_flat() -> None:
    runs = [choice.choose(_run([1.0, 0.5, 0.5, 0.5], spread=0.001, seed=seed)) for seed in range(20)]
    assert sum(made.best.step == 20 for made in runs) >= 14
    assert all(made.best.step > 10 for made in runs)
    assert any("within noise of the lowest loss (step 40)" in made.reason for made in runs)


def test_much_noise_does_not_buy_a_visibly_worse_snapshot() -> None:
    made = choice.choose(_run([1.0, 0.55, 0.5], spread=0.5, n=1, k=8, seed=1))
    lowest = min(_run([1.0, 0.55, 0.5], spread=0.5, n=1, k=8, seed=1), key=lambda c: c.loss)
    assert made.best.loss <= lowest.loss * (1 + choice.PRICE)


def test_the_last_is_taken_where_it_is_asked_for_and_its_price_is_said() -> None:
    made = choice.choose_last(_run([1.0, 0.5, 0.75], spread=0.0))
    assert (made.best.step, made.is_asked_for) == (30, True)
    price = made.best.loss / _run([1.0, 0.5, 0.75], spread=0.0)[1].loss - 1
    assert f"{price:.1%} above step 20's" in made.reason
    assert "has the lowest loss too" in choice.choose_last(_run([1.0, 0.5])).reason


@pytest.mark.parametrize("seed", range(20))
def test_an_overfit_end_is_never_recommended(seed: int) -> None:
    """A minimum at a fifth of the way and a rise of a tenth, as few pictures trained for long show it."""
    curve = [0.94, 0.92, 0.93, 0.95, 0.97, 0.99, 1.0, 1.01, 1.01, 1.02]
    made = choice.choose(_run(curve, spread=0.03, seed=seed))
    assert made.best.step <= 40


COSINE = {10: 0.39, 20: 0.70, 30: 0.90, 40: 0.99, 50: 1.0}
"""Learning rate spent by a fifth, two fifths, ... of a run whose rate falls as a cosine."""


def _base(seed: int = 0) -> Candidate:
    return Candidate(0, _run([1.0], spread=0, seed=seed)[0].losses)


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize(("curve", "more", "spread"), [
    ([0.988, 0.972, 0.960, 0.954, 0.953], -0.024, 0.005),
    ([0.9955, 0.9908, 0.9876, 0.9861, 0.9859], -0.0065, 0.0003),  # a style that is near the base: less to gain, as unfinished
])  # fmt: skip
def test_an_underfit_run_is_told_that_more_steps_would_pay(
    curve: list[float], more: float, spread: float, seed: int
) -> None:
    """As long as the gain keeps pace with the rate that is spent, however flat the curve ends."""
    run = _run(curve, spread=spread, seed=seed)
    assert choice.outlook(_base(seed), run, COSINE) == pytest.approx(more, abs=-more / 4)


def test_a_gain_of_next_to_nothing_is_not_worth_more_steps() -> None:
    assert choice.outlook(_base(), _run([0.9998, 0.9995, 0.9993, 0.9992, 0.999], spread=0), COSINE) is None


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("curve", [[0.864, 0.825, 0.817, 0.816, 0.8156], [0.97, 0.948, 0.9455, 0.9427, 0.9429]])
def test_a_settled_run_is_not_told_so(curve: list[float], seed: int) -> None:
    assert choice.outlook(_base(seed), _run(curve, spread=0.005, seed=seed), COSINE) is None


def test_neither_is_one_that_rises_or_has_one_snapshot() -> None:
    assert choice.outlook(_base(), _run([0.9, 0.92, 0.95, 0.97, 1.0]), COSINE) is None
    assert choice.outlook(_base(), _run([1.1, 1.09, 1.08, 1.07, 1.06]), COSINE) is None
    assert choice.outlook(_base(), _run([0.8])[:1], {10: 1.0}) is None


def test_a_mean_of_snapshots_is_recommended_only_where_it_wins_beyond_noise() -> None:
    snapshots = _run([0.8, 0.7, 0.69])
    better = Candidate(30, snapshots[-1].losses - 0.02, 2)
    same = Candidate(30, snapshots[-1].losses - 0.02 * torch.randn(3, 16, dtype=torch.float64).abs().mean(), 3)
    made = choice.choose(snapshots, [better])
    assert made.best is better
    assert made.best.name == "the mean of 2 up to step 30"
    noisy = Candidate(
        30, same.losses + 0.5 * torch.randn(3, 16, generator=torch.Generator().manual_seed(1)).double(), 3
    )
    assert choice.choose(snapshots, [noisy]).best.n_averaged == 1


def test_a_run_stops_when_its_best_is_left_behind() -> None:
    falling = _run([1.0, 0.9, 0.85, 0.82])
    assert not any(choice.has_stopped_paying(falling[:i]) for i in range(1, 5))
    rising = _run([1.0, 0.9, 0.95, 0.97, 1.0])
    assert [choice.has_stopped_paying(rising[:i]) for i in range(1, 6)] == [False, False, False, True, True]


def test_a_flat_curve_is_given_one_mark_more() -> None:
    flat = _run([1.0, 0.9, 0.9001, 0.9001, 0.9001], spread=0.03, seed=3)
    lowest = min(range(5), key=lambda i: flat[i].loss)
    assert not choice.has_stopped_paying(flat[: lowest + 2])


def test_noise_is_told_from_questions_where_pictures_are_few() -> None:
    generator = torch.Generator().manual_seed(0)
    difference = torch.randn(1, 400, generator=generator, dtype=torch.float64)
    assert choice.noise(difference) == pytest.approx(1 / math.sqrt(400), rel=0.1)
    by_picture = torch.randn(400, 1, generator=generator, dtype=torch.float64).expand(400, 8)
    assert choice.noise(by_picture) == pytest.approx(1 / math.sqrt(400), rel=0.1), "answers of a picture may agree"
    assert choice.noise(torch.ones(1, 1)) == 0.0


def test_losses_that_are_not_finite_choose_nothing() -> None:
    good, broken = _run([0.9])[0], Candidate(20, torch.full((3, 16), torch.nan, dtype=torch.float64))
    assert choice.choose([good, broken]).best is good
    assert choice.choose([broken]).reason == "no snapshot has a finite loss"
