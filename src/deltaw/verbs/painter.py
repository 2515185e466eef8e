"""What draws: a base's pipeline with its LoRAs, kept to draw many pictures, and the recipe of a picture."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from PIL import Image

from deltaw import device as devices
from deltaw import inject, zoo
from deltaw.delta import Delta
from deltaw.errors import InputError
from deltaw.families import bases, solvers
from deltaw.families.base import Base

CPU_POSITIONS = 10_000
"""Positions in latents that a CPU predicts together: more than two of 64×64 or four of 48×48 leave its caches, which is slower
(`python -m benchmarks.drawing --pace`)."""
MANY = 64
"""Predictions together on a GPU, which always gains by more."""


@dataclass(frozen=True)
class Use:
    """A LoRA file as used: its name, SHA-256 and strength. The path is kept out of pictures."""

    name: str
    sha256: str
    strength: float


@dataclass(frozen=True)
class Recipe:
    """Everything that decides a picture; with the same machine and versions, every bit of it.

    What has a default beside the sampler is only written down: a painter holds it already.
    """

    prompt: str
    negative: str
    seed: int
    steps: int
    guidance: float
    width_px: int
    height_px: int
    loras: tuple[Use, ...] = ()
    base: str = ""
    base_sha256: str = ""
    dtype: str = ""
    device: str = ""
    sampler: str = solvers.OWN


class Painter:
    """An opened base with its LoRAs, ready to draw. Keep it to draw many pictures.

    Args:
        base: an opened base; None is the bundled one.
        device: None takes the fastest that works.
        dtype: of the network and the text encoders; None takes what the device is fast at.
        packed: the network's linear layers are kept in 8 bits.
        read: recipes whose prompts are read at once, before the network is loaded, and the text encoders given back.
            Nothing but these can be drawn then, all together, and with no negative prompt or change of a text encoder.
    """

    def __init__(
        self, base: Base | None = None, device: str | None = None, dtype: str | None = None, *, packed: bool = False,
        read: Sequence[Recipe] | None = None,
    ):  # fmt: skip
        self.base = base or bases.open_base(zoo.bundled_base())
        self.device, _ = devices.choose(device)
        self.dtype = getattr(torch, dtype) if dtype else devices.compute_dtype(self.device)[0]
        self._known: list[str] = []
        self._told: Mapping[str, torch.Tensor | None] | None = None
        self.pipe = self.base.pipeline(self.device, self.dtype, packed=packed, networkless=read is not None)
        self._scheduler = self.pipe.scheduler
        self.pipe.vae.to(torch.float32)  # its rounding shows, and some VAEs overflow in float16
        if read is not None:
            self._read(read)
            setattr(self.pipe, self.base.component, self.base.denoiser(self.device, self.dtype, packed=packed))
        devices.trim()

    @torch.no_grad()
    def _read(self, recipes: Sequence[Recipe]) -> None:
        self._known = [r.prompt for r in recipes]
        self._told = self.base.told(self.pipe, self._known, recipes[0].guidance)
        self._drop([name for name in self.networks() if name != self.base.component])

    def _drop(self, names: Sequence[str]) -> None:
        for name in names:
            setattr(self.pipe, name, None)
        devices.give_back()

    @property
    def network(self) -> torch.nn.Module:
        """The one that predicts noise."""
        return getattr(self.pipe, self.base.component)

    def networks(self) -> dict[str, torch.nn.Module]:
        """The networks that a LoRA may change, by component name."""
        names = (part for part in self.base.folder.parts if part != "vae")
        return {name: getattr(self.pipe, name) for name in names}

    def default(self, name: str, fallback: Any) -> Any:
        """What the base recommends for drawing, else the fallback."""
        return self.base.folder.recommended.get("generate", {}).get(name, fallback)

    def at_once(self, n_positions: int) -> int:
        """Predictions of so many positions in a latent that are best made together."""
        return max(1, CPU_POSITIONS // n_positions) if self.device.type == "cpu" else MANY

    def latents(
        self, recipes: Sequence[Recipe], deltas: Sequence[tuple[Delta, float]],
        go_on: Callable[[], bool] = lambda: True, at_a_time: int | None = None,
    ) -> torch.Tensor:  # fmt: skip
        """Draws recipes that differ in prompt, negative and seed only; (n, c, h/f, w/f) float32 on the CPU.

        Pictures drawn together are equal to ones drawn alone only up to rounding.

        Args:
            recipes: what to draw.
            deltas: each with its strength.
            go_on: asked after every step; False leaves the other steps out.
            at_a_time: pictures drawn together, by default as many as the device is fast at.
        """
        prompts, first = [r.prompt for r in recipes], recipes[0]
        usual = self.at_once(first.width_px * first.height_px // self.base.factor**2)
        n = at_a_time or max(1, usual // (2 if self.base.guided(first.guidance) else 1))
        if self._told is not None and prompts != self._known:
            raise ValueError("other prompts than those that were read when the painter was made")
        parts = [slice(i, i + n) for i in range(0, len(recipes), n)]
        with devices.kept(), inject.applied(self.networks(), deltas):
            return torch.cat([self._drawn(recipes[part], self._words(prompts, part), go_on) for part in parts])

    def _words(self, prompts: list[str], part: slice) -> dict[str, Any]:
        """Some prompts, or what was read of them, as the pipeline takes them."""
        if self._told is None:
            return {"prompt": prompts[part]}
        return {name: None if said is None else said[part] for name, said in self._told.items()}

    def _drawn(self, recipes: Sequence[Recipe], words: Mapping[str, Any], go_on: Callable[[], bool]) -> torch.Tensor:
        def after_step(pipe: Any, _step: int, _time: Any, kept: dict[str, Any]) -> dict[str, Any]:
            pipe._interrupt = not go_on()  # as diffusers' own guide does it
            return kept

        first = recipes[0]
        self.pipe.scheduler = solvers.scheduler(self._scheduler, first.sampler)
        drawn = self.pipe(
            **words, generator=[torch.Generator().manual_seed(r.seed) for r in recipes], num_inference_steps=first.steps,
            width=first.width_px, height=first.height_px, output_type="latent", callback_on_step_end=after_step,
            **self.base.steering([r.negative for r in recipes], first.guidance),
        )  # fmt: skip
        return self.base.unpacked(drawn.images.float().cpu(), (first.width_px, first.height_px))

    def let_go(self) -> None:
        """Gives back all but the VAE: what was drawn can still be decoded, which needs much memory, and nothing more drawn."""
        self._drop(list(self.networks()))

    @torch.no_grad()
    def decode(self, latents: torch.Tensor) -> list[Image.Image]:
        """Latents (n, c, h/f, w/f) as pictures; the VAE runs in float32, one picture at a time, since it needs most memory."""
        vae = self.pipe.vae
        scaled = latents / vae.config.scaling_factor + (vae.config.shift_factor or 0.0)
        pixels = torch.cat([vae.decode(one.to(self.device)).sample.cpu() for one in scaled.split(1)])
        if not torch.isfinite(pixels).all():
            raise InputError("the base drew non-finite pixels", where=self.base.folder.path,
                             advice="try --set dtype=float32, or less strength")  # fmt: skip
        return self.pipe.image_processor.postprocess(pixels, output_type="pil")

    def draw(self, recipes: Sequence[Recipe], deltas: Sequence[tuple[Delta, float]] = ()) -> list[Image.Image]:
        """Pictures of recipes that differ in prompt, negative and seed only, in one batch."""
        return self.decode(self.latents(recipes, deltas))
