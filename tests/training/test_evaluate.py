"""Fixed questions: paired scores, and the snapshot that is recommended."""

from __future__ import annotations

import torch

from deltaw.diffusion import objective, schedule
from deltaw.training import evaluate


def _table() -> schedule.Schedule:
    betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2
    return schedule.from_alphas_cumprod((1 - betas).cumprod(0))


def _probe(n: int = 5) -> evaluate.Probe:
    generator = torch.Generator().manual_seed(0)
    shapes = [(4, 8, 8) if i % 2 else (4, 8, 4) for i in range(n)]
    latents = [torch.randn(shape, generator=generator) for shape in shapes]
    return evaluate.probe(latents, [torch.zeros(3, 2)] * n, objective.EPS, _table(), seed=1)


def test_the_right_answers_have_no_loss_and_zero_has_the_noises_own() -> None:
    probe = _probe()
    answers = {id(x): target for x, _, _, target, _ in probe.groups}
    assert len(answers) == 2, "one group a shape"
    losses = probe.losses(lambda x, times, text: torch.zeros_like(x))
    assert torch.allclose(losses, torch.ones(5, dtype=torch.float64), atol=0.2)
    given = iter([part for _, _, _, target, _ in probe.groups for part in target.split(evaluate.BATCH)])
    assert probe.losses(lambda x, times, text: next(given)).abs().max() == 0


def test_every_picture_is_asked_at_times_all_over_the_schedule() -> None:
    for _, times, _, _, owner in _probe().groups:
        for picture in owner.unique():
            eighths = (times[owner == picture] * evaluate.N_TIMES // 1000).tolist()
            assert eighths == list(range(evaluate.N_TIMES))


def test_a_score_is_paired() -> None:
    base = torch.tensor([1.0, 2.0, 3.0, 4.0], dtype=torch.float64)
    score = evaluate.score(7, base * 0.9, base)
    assert (score.step, score.n_better, score.n) == (7, 4, 4)
    assert abs(score.change + 0.1) < 1e-9
    assert score.low < score.change < score.high < 0


def _run(*means: float, spread: float = 0.001) -> list[tuple[int, torch.Tensor]]:
    generator = torch.Generator().manual_seed(0)
    return [
        (10 * (i + 1), mean + spread * torch.randn(30, generator=generator, dtype=torch.float64))
        for i, mean in enumerate(means)
    ]


def test_the_earliest_within_noise_is_recommended() -> None:
    assert evaluate.recommend(_run(1.0, 0.8, 0.7, 0.6)) == (40, "it has the lowest loss")
    step, why = evaluate.recommend(_run(1.0, 0.5, 0.5, 0.5, spread=0.05))
    assert step == 20
    assert "within noise" in why or "lowest" in why


def test_an_overfit_end_is_not_recommended() -> None:
    assert evaluate.recommend(_run(1.0, 0.7, 0.8, 1.1))[0] == 20
