"""What solves the equation of a drawing: a base's own scheduler, or DPM-Solver++, which is as near to its solution in half the steps.

Lu et al. 2022, "DPM-Solver++: Fast Solver for Guided Sampling of Diffusion Probabilistic Models" (arXiv 2211.01095): second
order, multistep, one prediction a step. Its steps are spread over the noise as in Karras et al. 2022 (arXiv 2206.00364, equation 5).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from deltaw.errors import UsageError
from deltaw.families.base import Base

Sampler = Literal["base", "dpm++"]
OWN: Sampler = "base"
"""The scheduler that the base came with."""
FAST: Sampler = "dpm++"
SPOKEN = {OWN: "its own scheduler", FAST: "DPM-Solver++"}
FAST_STEPS = 20
"""Steps of `FAST` where the base says nothing: the most that the paper needs for guided drawing."""
PLAIN = (
    "DDIMScheduler", "PNDMScheduler", "LMSDiscreteScheduler", "EulerDiscreteScheduler", "HeunDiscreteScheduler",
    "DEISMultistepScheduler", "DPMSolverMultistepScheduler", "DPMSolverSinglestepScheduler", "UniPCMultistepScheduler",
)  # fmt: skip
"""Schedulers of the same equation without fresh noise, so that another solver gives the same picture."""


def usable(config: Mapping[str, Any]) -> tuple[Sampler, ...]:
    """Samplers for a base with this scheduler, the better one first.

    A base keeps its own alone where that adds fresh noise, where its steps begin at the last of all times, as those of bases distilled to a
    few steps do, or where nothing of the picture is left at that time, which the spread of `FAST` has no room for.
    """
    other = config.get("_class_name", PLAIN[0]) not in PLAIN
    if other or config.get("timestep_spacing") == "trailing" or config.get("rescale_betas_zero_snr"):
        return (OWN,)
    return FAST, OWN


def chosen(base: Base, asked: str | None = None) -> tuple[str, int]:
    """The sampler to draw with, the one asked for or what the base recommends, and its usual number of steps.

    Raises:
        UsageError: the base cannot be drawn with the one asked for.
    """
    told = base.folder.recommended.get("generate", {})
    usual = told.get("sampler", base.samplers[0])
    sampler = asked or usual
    if sampler not in base.samplers:
        what = f"unknown sampler {sampler!r}"
        if sampler == FAST:
            name = base.folder.configs["scheduler"].get("_class_name", "no name given")
            what = f"{base.folder.path.name} is drawn with its own scheduler ({name}) alone, not with {sampler}"
        raise UsageError(what, where="sampler", expected=" or ".join(base.samplers))
    if sampler == usual and "steps" in told:
        return sampler, int(told["steps"])
    return sampler, FAST_STEPS if sampler == FAST else base.drawn_in_steps


def scheduler(own: Any, sampler: str) -> Any:
    """diffusers' scheduler of a sampler.

    Args:
        own: the base's.
        sampler: one of those `usable` with it.
    """
    if sampler == OWN:
        return own
    from diffusers.schedulers.scheduling_dpmsolver_multistep import DPMSolverMultistepScheduler

    return DPMSolverMultistepScheduler.from_config(
        own.config, algorithm_type="dpmsolver++", solver_order=2, solver_type="midpoint", lower_order_final=True,
        final_sigmas_type="zero", use_karras_sigmas=True, use_beta_sigmas=False, use_exponential_sigmas=False,
        use_lu_lambdas=False,
    )  # fmt: skip
