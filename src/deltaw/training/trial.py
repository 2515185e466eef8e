"""Before the long part: the largest bucket is trained once, one sheet's row drawn, one file written.

What would stop a run after hours stops it here, and the seconds that were measured foretell the rest.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from deltaw import device as devices
from deltaw.data.feed import Feed
from deltaw.events import Phase, Tell, silent
from deltaw.families import blueprint
from deltaw.families.base import Base
from deltaw.training import asking, loading, replay
from deltaw.training.exactly import exactly
from deltaw.training.graph import Job
from deltaw.training.plan import Plan
from deltaw.training.replay import Steps
from deltaw.training.stepping import Batch, Work
from deltaw.training.team import Team
from deltaw.verbs.painter import Painter, Recipe

SHORT_S = 0.5
"""After a first step of less a second one is drawn and counts: prompts are encoded and kernels chosen before the first."""
FIRST_DRAWN = (1, 2)
"""Steps of a drawing that do not count, on a CPU and on a GPU, which loads its libraries in them."""


@dataclass(frozen=True)
class Measured:
    """Seconds of each piece of work on this machine.

    Args:
        step_s: of one training step on the largest bucket, without the optimizer's part.
        exact_s: of one picture's prediction in float32.
        ask_s: of one question among as many as are asked at a time; None where it was not tried.
        draw_s: of one denoising step for all that is drawn together; None where it was not tried.
        decode_s: of one latent's decoding; None likewise.
        size_s: that the first steps of a size of pictures take beyond their own time: libraries choose kernels, a GPU's steps are recorded.
    """

    step_s: float
    exact_s: float
    ask_s: float | None = None
    draw_s: float | None = None
    decode_s: float | None = None
    size_s: float = 0.0


def step(work: Work, job: Job) -> tuple[float, float]:
    """Seconds of one training step of the largest bucket, and what the first steps of another size would take beyond it.

    Nothing is changed by it but gradients.

    Args:
        work: network and adapters; its pictures are not looked at.
        job: largest bucket.
    """
    whole = replace(job, batch=work.plan.settings.batch)
    x, times, text = questions(work.base, whole, torch.float32, torch.device("cpu"))
    batch = Batch(x, times, text, torch.randn(x.shape), torch.ones(len(x)))
    compute = Steps(work, silent)

    def one() -> object:
        return compute.gathered(compute(batch))

    first = [_seconds(one, work.device) for _ in range(replay.n_first(work.device))]
    step_s = _seconds(one, work.device)
    compute.forget()
    devices.give_back()
    return step_s, _beyond(first, step_s)


def _beyond(first: list[float], step_s: float) -> float:
    """What the first steps of another size take beyond their own time, from those of this one.

    On a GPU the very first one also builds what all sizes share. The second, recorded, stands for both: it launches as many kernels.
    """
    return max(0.0, first[0] - step_s if len(first) == 1 else 2 * (first[1] - step_s))


def exact(base: Base, network: nn.Module, job: Job, device: torch.device) -> float:
    """Seconds of one prediction in float32 for a picture of the largest bucket."""
    x, times, text = questions(base, replace(job, batch=1), torch.float32, device)
    with torch.no_grad(), exactly(network):
        return _settled_seconds(lambda: base.denoise(network, x, times, text), device)


def ask(base: Base, network: nn.Module, job: Job, device: torch.device, n: int) -> float:
    """Seconds of one question among `n`."""
    x, times, text = questions(base, replace(job, batch=n), job.dtype, device)
    with torch.no_grad():
        return _settled_seconds(lambda: base.denoise(network, x, times, text), device) / n


def questions(base: Base, job: Job, dtype: torch.dtype, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """Random latents of the largest bucket, times and texts for a batch."""
    latents = blueprint.of(base.folder.configs).latents(job.batch, job.largest_px)
    x, text = (torch.randn(shape).to(device, dtype) for shape in (latents.shape, (job.batch, *base.text_shape)))
    return x, torch.randint(base.schedule.n_times, (job.batch,)).to(device), text


def load_and_step(base: Base, made: Plan, job: Job, device: torch.device) -> Measured:
    """`step` with a network that is loaded for it and released, and with other processes where the plan has them."""
    with Team.of(base.folder.path, made, device) as team:
        network = base.denoiser(device, job.dtype, packed=job.base_int8)
        work, _ = loading.prepared(base, network, Feed([], {}, []), made, device, job.dtype, team)
        if team is not None:
            team.join()
        step_s, size_s = step(work, job)
    return Measured(step_s, exact(base, network, job, device), size_s=size_s)


def sample(
    base: Base, made: Plan, device: torch.device, n: int, tell: Tell, *, keep: bool
) -> tuple[float, float, nn.Module | None]:
    """Draws the `n` pictures that are drawn at a time in a few denoising steps.

    Gives the seconds of a step of a whole row, and of decoding one picture, and the network where it is to be kept.

    Raises:
        InputError: the base draws nothing that is finite.
    """
    settings = made.settings
    tell(Phase("try one sample"))
    n_steps = FIRST_DRAWN[device.type == "cuda"] + 1
    columns, side = asking.columns(made), settings.resolution
    recipes = [
        Recipe(c.prompt, "", 0, n_steps, settings.guidance, side, side, sampler=settings.sampler) for c in columns[:n]
    ]
    painter = Painter(base, str(device), settings.dtype, packed=settings.base_int8, read=recipes)
    step_s, decode_s, network = _draw(painter, recipes, keep=keep)
    del painter
    devices.give_back()
    return step_s * -(-len(columns) // n), decode_s, network


def _draw(painter: Painter, recipes: list[Recipe], *, keep: bool) -> tuple[float, float, nn.Module | None]:
    """Seconds of one step of drawing the recipes and of decoding the first; the painter can then draw no more."""
    device = painter.device
    at = [time.perf_counter()]

    def go_on() -> bool:
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        at.append(time.perf_counter())
        return device.type == "cuda" or at[-1] - at[0] < SHORT_S

    latents = painter.latents(recipes, [], go_on, len(recipes))
    network = painter.network if keep else None
    painter.let_go()
    return at[-1] - at[-2], _settled_seconds(lambda: painter.decode(latents[:1]), device), network


def _settled_seconds(work: Callable[[], object], device: torch.device) -> float:
    """Seconds of work; on a GPU, whose libraries take far longer the first time than the work itself, of the second time."""
    if device.type == "cuda":
        work()
    return _seconds(work, device)


def _seconds(work: Callable[[], object], device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    start = time.perf_counter()
    work()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - start
