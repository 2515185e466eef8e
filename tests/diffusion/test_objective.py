"""The one law of an objective: the target gives the clean sample back."""

import pytest
import torch

from deltaw.diffusion import objective, schedule
from deltaw.diffusion.objective import ALL, Objective, mix


def _tables(kind: Objective) -> schedule.Schedule:
    if kind is objective.FLOW:
        t = torch.linspace(0.001, 0.999, 100)
        return schedule.Schedule(1 - t, t)
    betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2
    return schedule.from_alphas_cumprod((1 - betas).cumprod(0))


@pytest.mark.parametrize("kind", ALL, ids=lambda kind: kind.name)
def test_to_x0_of_the_target_is_the_clean_sample(kind: Objective) -> None:
    table = _tables(kind)
    generator = torch.Generator().manual_seed(0)
    times = torch.arange(0, table.n_times, 7)
    x0 = torch.randn(len(times), 4, 8, 8, generator=generator, dtype=torch.float64)
    e = torch.randn(x0.shape, generator=generator, dtype=torch.float64)
    a, s = (v.double() for v in table.at(times))
    found = kind.to_x0(kind.target(x0, e, a, s), mix(x0, e, a, s), a, s)
    assert torch.allclose(found, x0, atol=1e-5), "float32 tables leave a² + s² off 1 by their rounding"


def test_min_snr_is_the_papers() -> None:
    snr = torch.tensor([0.1, 1.0, 5.0, 50.0])
    assert torch.allclose(objective.EPS.min_snr(snr, 5.0), torch.tensor([1.0, 1.0, 1.0, 0.1]))
    assert torch.allclose(objective.V.min_snr(snr, 5.0), torch.tensor([0.1 / 1.1, 0.5, 5 / 6, 5 / 51]))
    assert torch.equal(objective.FLOW.min_snr(snr, 5.0), torch.ones(4))


def test_the_table_agrees_with_diffusers() -> None:
    from diffusers import DDPMScheduler

    scheduler = DDPMScheduler(beta_schedule="scaled_linear")
    table = schedule.from_alphas_cumprod(scheduler.alphas_cumprod)
    x0, e, times = torch.randn(5, 4, 8, 8), torch.randn(5, 4, 8, 8), torch.tensor([0, 10, 500, 900, 999])
    assert torch.allclose(mix(x0, e, *table.at(times)), scheduler.add_noise(x0, e, times), atol=1e-6)
    assert torch.allclose(objective.V.target(x0, e, *table.at(times)), scheduler.get_velocity(x0, e, times), atol=1e-6)


def test_stratified_covers_every_part_once() -> None:
    drawn = schedule.stratified(16, torch.Generator().manual_seed(3))
    assert sorted((drawn * 16).long().tolist()) == list(range(16))
    assert not torch.equal(drawn, schedule.stratified(16, torch.Generator().manual_seed(4)))
