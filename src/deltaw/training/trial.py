"""Before the long part: the largest bucket is trained once, one sheet's row drawn, one file written.

What would stop a run after hours stops it here, and the seconds that were measured foretell the rest.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from deltaw import device as devices
from deltaw import inject
from deltaw.events import Phase, Tell
from deltaw.families import blueprint
from deltaw.families.base import Base
from deltaw.inject import Wrapped
from deltaw.training import asking
from deltaw.training.exactly import exactly
from deltaw.training.graph import Job
from deltaw.training.plan import Plan
from deltaw.verbs.painter import Painter, Recipe

SHORT_S = 0.5
"""After a first step of less a second one is taken and counts: prompts are encoded and kernels chosen before the first."""


@dataclass(frozen=True)
class Measured:
    """Seconds of each piece of work on this machine.

    Args:
        step_s: of one training step on the largest bucket, without the optimizer's part.
        exact_s: of one picture's prediction in float32.
        ask_s: of one question among as many as are asked at a time; None where it was not tried.
        draw_s: of one denoising step for all that is drawn together; None where it was not tried.
        decode_s: of one latent's decoding; None likewise.
    """

    step_s: float
    exact_s: float
    ask_s: float | None = None
    draw_s: float | None = None
    decode_s: float | None = None


def step(base: Base, network: nn.Module, wrapped: Wrapped, job: Job, device: torch.device) -> float:
    """Seconds of one training step of the largest bucket, after one that does not count; nothing is changed by it.

    Args:
        base: whose network it is.
        network: with its adapters, on `device`.
        wrapped: the adapters.
        job: batch and largest bucket.
        device: where the network is.
    """
    x, times, text = questions(base, job, job.dtype, device)

    trained = list(wrapped.parameters().values())

    def train() -> Sequence[Tensor]:
        return torch.autograd.grad(base.denoise(network, x, times, text).float().square().mean(), trained)

    train()
    step_s = _seconds(train, device)
    devices.give_back()
    return step_s


def exact(base: Base, network: nn.Module, job: Job, device: torch.device) -> float:
    """Seconds of one prediction in float32 for a picture of the largest bucket."""
    x, times, text = questions(base, replace(job, batch=1), torch.float32, device)
    with torch.no_grad(), exactly(network):
        return _seconds(lambda: base.denoise(network, x, times, text), device)


def ask(base: Base, network: nn.Module, job: Job, device: torch.device, n: int) -> float:
    """Seconds of one question among `n`."""
    x, times, text = questions(base, replace(job, batch=n), job.dtype, device)
    with torch.no_grad():
        return _seconds(lambda: base.denoise(network, x, times, text), device) / n


def questions(base: Base, job: Job, dtype: torch.dtype, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """Random latents of the largest bucket, times and texts for a batch."""
    latents = blueprint.of(base.folder.configs).latents(job.batch, job.largest_px)
    x, text = (torch.randn(shape).to(device, dtype) for shape in (latents.shape, (job.batch, *base.text_shape)))
    return x, torch.randint(base.schedule.n_times, (job.batch,)).to(device), text


def load_and_step(base: Base, made: Plan, job: Job, device: torch.device) -> Measured:
    """`step` with a network that is loaded for it and released."""
    settings = made.settings
    network = base.denoiser(device, job.dtype, checkpointing=job.checkpointing, packed=job.base_int8)
    generator = torch.Generator().manual_seed(settings.seed)
    wrapped = inject.wrap(network, settings.targets, settings.rank, settings.alpha, generator)
    step_s = step(base, network, wrapped, job, device)
    return Measured(step_s, exact(base, network, job, device))


def sample(base: Base, made: Plan, device: torch.device, n: int, tell: Tell) -> tuple[float, float]:
    """Draws the `n` pictures that are drawn at a time in one or two denoising steps.

    Gives the seconds of a step of a whole row, and of decoding one picture.

    Raises:
        InputError: the base draws nothing that is finite.
    """
    settings = made.settings
    tell(Phase("try one sample"))
    recipe = Recipe("", "", 0, 2, settings.guidance, settings.resolution, settings.resolution, (), "", "", "", "")
    columns = asking.columns(made)
    recipes = [replace(recipe, prompt=column.prompt) for column in columns[:n]]
    painter = Painter(base, str(device), settings.dtype, packed=settings.base_int8, read=recipes)
    step_s, decode_s = _draw(painter, recipes)
    del painter
    devices.give_back()
    return step_s * -(-len(columns) // n), decode_s


def _draw(painter: Painter, recipes: list[Recipe]) -> tuple[float, float]:
    """Seconds of one step of drawing the recipes and of decoding the first; the painter can then draw no more."""
    device = painter.device
    at = [time.perf_counter()]

    def go_on() -> bool:
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        at.append(time.perf_counter())
        return at[-1] - at[0] < SHORT_S

    latents = painter.latents(recipes, [], go_on)
    painter.let_go()
    return at[-1] - at[-2], _seconds(lambda: painter.decode(latents[:1]), device)


def _seconds(work: Callable[[], object], device: torch.device) -> float:
    start = time.perf_counter()
    work()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - start
