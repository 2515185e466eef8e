"""Samplers: which a base can be drawn with, how near they come, and that a picture remembers its own."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from PIL import Image, PngImagePlugin

import deltaw
from deltaw.errors import UsageError
from deltaw.families import bases, solvers
from deltaw.verbs import generate as verb
from deltaw.verbs.painter import Painter, Recipe
from deltaw.zoo import bundled_base

PUBLISHED = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
FEW = {"steps": 3, "dtype": "float32", "device": "cpu"}
SPREAD = 0.7
"""Standard deviation of the toy data, for which the equation of a drawing can be solved on paper."""


@pytest.mark.parametrize("name", solvers.PLAIN)
def test_plain_schedulers_give_way(name: str) -> None:
    """Each is one that diffusers has, so that no name is only written here."""
    assert hasattr(diffusers, name)
    assert solvers.usable({"_class_name": name, **PUBLISHED}) == (solvers.FAST, solvers.OWN)


@pytest.mark.parametrize(
    "config",
    [{"_class_name": "EulerAncestralDiscreteScheduler"}, {"_class_name": "DDPMScheduler"}, {"_class_name": "LCMScheduler"},
     {"_class_name": "DDIMScheduler", "timestep_spacing": "trailing"},
     {"_class_name": "DDIMScheduler", "rescale_betas_zero_snr": True}],
)  # fmt: skip
def test_others_are_kept(config: dict[str, object]) -> None:
    assert solvers.usable(config) == (solvers.OWN,)


def solved(scheduler: Any, n_steps: int, prediction: str) -> torch.Tensor:
    """A drawing of data that are N(0, SPREAD²) by the exact network; the solution is the start times SPREAD / its deviation."""
    scheduler.set_timesteps(n_steps)
    start = torch.randn(64, 4, 1, 1, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    x = start * scheduler.init_noise_sigma
    for i, t in enumerate(scheduler.timesteps):
        own = scheduler.sigmas[i].double() if hasattr(scheduler, "sigmas") else None
        a = scheduler.alphas_cumprod[t].double() if own is None else 1 / (1 + own**2)
        alpha, sigma = a.sqrt(), (1 - a).sqrt()
        seen = scheduler.scale_model_input(x, t)
        noise = seen * sigma / (a * SPREAD**2 + 1 - a)
        clean = (seen - sigma * noise) / alpha
        x = scheduler.step(noise if prediction == "epsilon" else alpha * noise - sigma * clean, t, x).prev_sample
    return (x / start).mean()


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
@pytest.mark.parametrize(
    ("name", "more"),
    [("DDIMScheduler", {"clip_sample": True}), ("PNDMScheduler", {"skip_prk_steps": True}),
     ("EulerDiscreteScheduler", {"interpolation_type": "linear", "use_exponential_sigmas": True}), ("HeunDiscreteScheduler", {}),
     ("DPMSolverMultistepScheduler", {"algorithm_type": "sde-dpmsolver++", "solver_order": 3, "use_lu_lambdas": True}),
     ("UniPCMultistepScheduler", {"solver_order": 3, "use_karras_sigmas": True})],
)  # fmt: skip
def test_half_the_steps_come_as_near(name: str, more: dict[str, object], prediction: str) -> None:
    """Whatever scheduler the base came with, and with options of it that contradict the fast one's."""
    own = getattr(diffusers, name)(**PUBLISHED, prediction_type=prediction, timestep_spacing="leading", **more)
    plain = diffusers.DDIMScheduler(
        **PUBLISHED, prediction_type=prediction, set_alpha_to_one=False, steps_offset=1, clip_sample=False
    )
    fast = abs(solved(solvers.scheduler(own, solvers.FAST), 12, prediction) - SPREAD)
    slow = abs(solved(plain, 25, prediction) - SPREAD)
    assert fast < 0.03
    assert fast < slow
    assert abs(solved(solvers.scheduler(own, solvers.FAST), 50, prediction) - SPREAD) < 0.003
    assert solvers.scheduler(own, solvers.OWN) is own


def test_the_base_recommends_and_the_user_decides(tiny_base: Path, tiny_flux: Path) -> None:
    bundled, tiny, flow = (bases.open_base(path) for path in (bundled_base(), tiny_base, tiny_flux))
    steps = bundled.folder.recommended["generate"]["steps"]
    assert solvers.chosen(bundled) == (solvers.FAST, steps)
    assert solvers.chosen(bundled, solvers.OWN) == (solvers.OWN, 25)
    assert solvers.chosen(tiny) == (solvers.FAST, solvers.FAST_STEPS)
    assert solvers.chosen(flow) == (solvers.OWN, flow.drawn_in_steps)
    tiny.folder.recommended["generate"] = {"sampler": "base", "steps": 9}
    assert solvers.chosen(tiny) == (solvers.OWN, 9)
    assert solvers.chosen(tiny, solvers.FAST) == (solvers.FAST, solvers.FAST_STEPS)
    with pytest.raises(
        UsageError, match=r"its own scheduler \(FlowMatchEulerDiscreteScheduler\) alone, not with dpm\+\+"
    ):
        solvers.chosen(flow, solvers.FAST)
    with pytest.raises(UsageError, match="unknown sampler 'euler'"):
        solvers.chosen(tiny, "euler")


@pytest.mark.parametrize("steps", [1, 2, 12])
def test_it_is_the_published_scheduler(tiny_base: Path, steps: int) -> None:
    """What a user of diffusers writes by hand draws the same."""
    painter = Painter(bases.open_base(tiny_base), "cpu", "float32")
    recipe = Recipe("a red apple", "", 7, steps, 4.0, 64, 64, sampler=solvers.FAST)
    ours = painter.latents([recipe], [])
    again = bases.open_base(tiny_base).pipeline(torch.device("cpu"), torch.float32)
    again.scheduler = diffusers.DPMSolverMultistepScheduler.from_config(again.scheduler.config, use_karras_sigmas=True)
    theirs = again("a red apple", generator=torch.Generator().manual_seed(7), num_inference_steps=steps, guidance_scale=4.0,
                   width=64, height=64, output_type="latent").images  # fmt: skip
    assert torch.allclose(ours, theirs, atol=1e-5)
    own = painter.latents([Recipe("a red apple", "", 7, steps, 4.0, 64, 64)], [])
    assert not torch.allclose(ours, own, atol=1e-2), "one painter draws with either"


def test_a_picture_remembers_its_sampler(tiny_base: Path, tmp_path: Path) -> None:
    [fast] = deltaw.generate("a house", base=tiny_base, out=tmp_path / "fast.png", **FEW)
    [own] = deltaw.generate("a house", base=tiny_base, sampler="base", out=tmp_path / "own.png", **FEW)
    assert [verb.read_recipe(path)["sampler"] for path in (fast, own)] == ["dpm++", "base"]
    assert fast.read_bytes() != own.read_bytes()
    for path in (fast, own):
        [again] = deltaw.generate(base=tiny_base, like=path, out=tmp_path / "again.png")
        assert again.read_bytes() == path.read_bytes()
    [other] = deltaw.generate(base=tiny_base, like=own, sampler="dpm++", out=tmp_path / "other.png")
    assert other.read_bytes() == fast.read_bytes()


def test_a_picture_that_tells_of_no_sampler_was_drawn_by_the_base_s_own(tiny_base: Path, tmp_path: Path) -> None:
    """Those of earlier versions."""
    [own] = deltaw.generate("a house", base=tiny_base, sampler="base", out=tmp_path / "own.png", **FEW)
    with Image.open(own) as picture:
        recipe = json.loads(picture.text["deltaw"])  # pyright: ignore[reportAttributeAccessIssue]
        del recipe["sampler"]
        info = PngImagePlugin.PngInfo()
        info.add_itxt("deltaw", json.dumps(recipe))
        picture.save(tmp_path / "old.png", pnginfo=info)
    [again] = deltaw.generate(base=tiny_base, like=tmp_path / "old.png", out=tmp_path / "again.png")
    assert again.read_bytes() == own.read_bytes()


def test_a_grid_of_samplers(tiny_base: Path, tmp_path: Path) -> None:
    [grid] = deltaw.generate("a house", base=tiny_base, grid="sampler=base,dpm++", out=tmp_path / "grid.png", **FEW)
    assert verb.read_recipe(grid)["grid"] == "sampler=base,dpm++"
    with pytest.raises(UsageError, match="unknown sampler 'euler'"):
        deltaw.generate("a house", base=tiny_base, grid="sampler=base,euler", out=tmp_path / "no.png", **FEW)
    assert not (tmp_path / "no.png").exists()
