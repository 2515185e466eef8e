"""Fixed questions: right answers, times all over the schedule, the training objective's weights."""

from __future__ import annotations

import pytest
import torch

from deltaw.diffusion import objective, schedule
from deltaw.judge import questions


def _table() -> schedule.Schedule:
    betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2
    return schedule.from_alphas_cumprod((1 - betas).cumprod(0))


def _asked(n: int = 5, n_times: int = 8) -> questions.Questions:
    generator = torch.Generator().manual_seed(0)
    shapes = [(4, 8, 8) if i % 2 else (4, 8, 4) for i in range(n)]
    latents = [torch.randn(shape, generator=generator) for shape in shapes]
    return questions.about(latents, [torch.zeros(3, 2)] * n, objective.EPS, _table(), 1, n_times)


def test_the_right_answers_have_no_loss_and_zero_has_the_noises_own() -> None:
    asked = _asked()
    assert len(asked.groups) == 2, "one group a shape"
    losses = asked.losses(lambda x, times, text: torch.zeros_like(x))
    assert losses.shape == (5, 8)
    assert torch.allclose(losses.mean(1), torch.ones(5, dtype=torch.float64), atol=0.2)
    given = iter([part for group in asked.groups for part in group.target.split(questions.BATCH)])
    assert asked.losses(lambda x, times, text: next(given)).abs().max() == 0


def test_every_picture_is_asked_at_times_all_over_the_schedule() -> None:
    for n_times in (8, 32):
        asked = _asked(n_times=n_times)
        assert (asked.times * n_times // 1000).tolist() == [list(range(n_times))] * 5


def test_answers_stand_beside_their_own_picture_and_time() -> None:
    asked = _asked()
    losses = asked.losses(lambda x, times, text: times.float().view(-1, 1, 1, 1).expand_as(x))
    assert all((losses[i].diff() > 0).all() for i in range(5)), "later questions are of later times"


@pytest.mark.parametrize("at_a_time", [1, 3, 16, 64])
def test_questions_put_again_are_answered_beside_the_others_under_their_own_texts(at_a_time: int) -> None:
    asked = _asked()
    again = questions.Again(torch.tensor([1, 5, 23]), [torch.full((3, 2), 7.0 + i) for i in range(3)])

    def predict(x: torch.Tensor, times: torch.Tensor, text: torch.Tensor) -> torch.Tensor:
        assert len(x) <= at_a_time
        return x * 0.5 + text.mean((1, 2)).view(-1, 1, 1, 1)

    answers = asked.answers(predict, again, at_a_time)
    assert torch.equal(answers.losses, asked.losses(predict, at_a_time))
    x = asked.groups[0].x[again.rows]
    assert torch.equal(answers.called, x * 0.5)
    assert torch.equal(answers.plain, x * 0.5 + torch.tensor([7.0, 8.0, 9.0]).view(3, 1, 1, 1))


def test_weights_are_those_of_training() -> None:
    asked, table = _asked(), _table()
    assert (questions.weights(asked, objective.EPS, table, 0) == 1).all()
    weighted = questions.weights(asked, objective.EPS, table, 5.0)
    expected = objective.EPS.min_snr(table.snr(asked.times[2]), 5.0).double()
    assert torch.equal(weighted[2], expected)
    assert (weighted[:, 0] < weighted[:, -1]).all(), "little noise counts less"
