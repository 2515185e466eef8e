"""What every base that can be trained shares: its folder, its VAE, its noise, and how its parts are loaded.

A family adds how its network is asked and how its texts are encoded; the rest of the package knows a base by this alone.
Networks, tokenizers, schedulers and pipelines are those of diffusers and transformers, unmodified.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from deltaw import device as devices
from deltaw import families, int8
from deltaw.diffusion.objective import Objective
from deltaw.diffusion.schedule import Schedule
from deltaw.families import kernels, weights
from deltaw.families.base_folder import BaseFolder

TOLD_FOUR = ("prompt_embeds", "negative_prompt_embeds", "pooled_prompt_embeds", "negative_pooled_prompt_embeds")
"""What `encode_prompt` of a guided pipeline with pooled texts gives, as its call names them."""


class Base(ABC):
    """An opened base; networks are loaded when asked for and belong to whoever asked.

    Args:
        folder: the checked diffusers folder.
        family: its name in `families.ALL`.
    """

    guidance: ClassVar[float]
    """How far drawing is guided where nothing else is said, as in diffusers' pipeline."""
    samplers: tuple[str, ...] = ("base",)
    """What it can be drawn with, the better one first (`solvers`)."""
    drawn_in_steps: int = 25
    """Denoising steps of a drawing by its own scheduler where nothing else is said."""
    guided_twice: ClassVar[bool] = True
    """Guidance asks the network twice, with the prompt and with what to steer away from; else it is told a number."""
    targets: ClassVar[str]
    """Q, K, V and O of every attention layer: a regular expression for the network's module paths."""
    dialect: ClassVar[tuple[str, str]] = ("kohya", "every common tool reads it")
    """In which dialect a LoRA is written where nothing else is said, and why."""
    text_dtype: ClassVar[torch.dtype] = torch.float32
    """Of the text encoders, whatever the network's."""
    packed_text_part: str = ""
    """The text encoder that is kept in 8 bits where the network is: one as large as that; others are left as they are."""
    objective: Objective
    schedule: Schedule

    def __init__(self, folder: BaseFolder, family: str):
        self.folder = folder
        self.family = family
        self.component = families.named(family).denoiser
        self.factor = 2 ** (len(folder.configs["vae"]["block_out_channels"]) - 1)

    @property
    @abstractmethod
    def resolution_px(self) -> int:
        """The side of the pictures that the base was trained on."""

    @property
    @abstractmethod
    def bucket_step_px(self) -> int:
        """Sides of training pictures are multiples of this."""

    @property
    def drawn_step_px(self) -> int:
        """Sides of drawn pictures are multiples of this."""
        return self.factor

    @property
    @abstractmethod
    def text_shape(self) -> tuple[int, int]:
        """Rows and width of an encoded text."""

    @abstractmethod
    def count_tokens(self) -> Callable[[str], tuple[int, str]]:
        """A text to its number of tokens, special ones included, and the part that the encoder cuts off."""

    @abstractmethod
    def text_encoder(self, device: torch.device, *, packed: bool = False) -> Callable[[Sequence[str]], Tensor]:
        """Loads tokenizers and text encoders; returns n captions -> (n, *`text_shape`), float32 on the CPU.

        `packed` keeps the `packed_text_part` in 8 bits.
        """

    @abstractmethod
    def embed(self, pipe: Any, texts: Sequence[str]) -> Tensor:
        """n texts as the text encoders of an opened pipeline read them: (n, *`text_shape`)."""

    @abstractmethod
    def denoise(self, network: nn.Module, x: Tensor, times: Tensor, text: Tensor) -> Tensor:
        """What the network predicts for x (n, c, h, w) at integer times (n,) of `schedule` and text (n, *`text_shape`)."""

    @abstractmethod
    def _kind(self) -> Any:
        """diffusers' class of the network."""

    @abstractmethod
    def _pipeline(self) -> tuple[Any, dict[str, Any]]:
        """diffusers' pipeline class and what it is opened with."""

    @abstractmethod
    def told(self, pipe: Any, prompts: Sequence[str], guidance: float) -> dict[str, Tensor | None]:
        """What an opened pipeline can be called with instead of prompts, and instead of the empty negative ones."""

    def guided(self, guidance: float) -> bool:
        """Whether each step of a drawing asks the network twice."""
        return self.guided_twice and guidance > 1

    def steering(self, negative: Sequence[str], guidance: float) -> dict[str, Any]:
        """What the pipeline is called with to guide the drawing of some prompts.

        Args:
            negative: per prompt what to steer away from.
            guidance: how far.
        """
        return {"guidance_scale": guidance, "negative_prompt": list(negative) if any(negative) else None}

    def unpacked(self, drawn: Tensor, size_px: tuple[int, int]) -> Tensor:  # noqa: ARG002
        """The latents (n, c, h/f, w/f) of what the pipeline gives for pictures of a size (width, height)."""
        return drawn

    def tokenizer(self, part: str = "tokenizer") -> Any:
        """A CLIP tokenizer of the base."""
        from transformers import CLIPTokenizer

        return CLIPTokenizer.from_pretrained(self.folder.path / part, local_files_only=True)

    def image_encoder(self, device: torch.device, dtype: torch.dtype = torch.float32) -> Callable[[np.ndarray], Tensor]:
        """Loads the VAE; returns (n, h, w, 3) uint8 -> latents (n, c, h/f, w/f), float32 on the CPU.

        The mean of the posterior is taken: it is what a cache can hold, and its spread is far below
        the noise that training adds.

        Args:
            device: where the VAE runs.
            dtype: of its products. In bfloat16 they take half the time, and what is decoded from the latents differs by
                less than rounding a picture to 8 bits; never float16, in which some VAEs overflow.
        """
        from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL

        vae = self._load(AutoencoderKL, "vae", device, torch.float32)

        @torch.no_grad()
        def encode(pictures: np.ndarray) -> Tensor:
            pixels = torch.from_numpy(pictures).to(device).permute(0, 3, 1, 2).float() / 127.5 - 1
            with torch.autocast(device.type, torch.bfloat16, enabled=dtype is torch.bfloat16):
                latents = vae.encode(pixels).latent_dist.mean.float()
            shift = vae.config.shift_factor or 0.0
            return ((latents - shift) * vae.config.scaling_factor).cpu()

        return encode

    def denoiser(self, device: torch.device, dtype: torch.dtype, *, packed: bool = False) -> nn.Module:
        """The network, frozen and in evaluation mode, computing in the way that is fastest there.

        `packed` linear layers are kept in 8 bits (`int8`).
        """
        _quiet()
        files = self.folder.weights(self.component)
        found = weights.load(lambda: self._kind().from_config(dict(self.config)), files, device, dtype, packed=packed)
        network: Any = found or self._load(self._kind(), self.component, device, dtype)
        if packed:
            int8.pack_all(network)
        kernels.speed_up(network, device, dtype)
        devices.trim()  # of every weight there was a copy in the file's precision
        return network

    @property
    def config(self) -> Mapping[str, Any]:
        """The network's."""
        return self.folder.configs[self.component]

    def pipeline(
        self, device: torch.device, dtype: torch.dtype, *, packed: bool = False, networkless: bool = False
    ) -> Any:
        """The whole base as diffusers' own pipeline of its kind, without a progress bar of its own.

        `networkless` it can read texts and nothing else, until its `component` is set.
        """
        _quiet()
        kind, options = self._pipeline()
        options[self.component] = None if networkless else self.denoiser(device, dtype, packed=packed)
        if packed:
            options |= self._packed_beside(device, dtype)
        pipe = kind.from_pretrained(
            self.folder.path, dtype=dtype, use_safetensors=True, local_files_only=True, **options
        )
        pipe.set_progress_bar_config(disable=True)
        return pipe.to(device)

    def _packed_beside(self, device: torch.device, dtype: torch.dtype) -> dict[str, Any]:  # noqa: ARG002
        """What a pipeline keeps in 8 bits beside the network, by part: the `packed_text_part`, where there is one."""
        return {}

    def _load(self, kind: Any, part: str, device: torch.device, dtype: torch.dtype) -> Any:
        _quiet()
        model = kind.from_pretrained(self.folder.path / part, dtype=dtype, use_safetensors=True, local_files_only=True)
        return model.to(device).eval().requires_grad_(False)


def check_point(network: Any) -> None:
    """Has a diffusers network compute each block's activations again in the backward pass (Chen et al. 2016, arXiv 1604.06174).

    The gradients are the same, for less memory and a third to a half more time.
    """
    network.enable_gradient_checkpointing(computed_again)


def computed_again(module: nn.Module, *arguments: Any) -> Any:
    """A block whose activations are not kept. Nothing in it is random, so no state of random numbers is put back for it."""
    return checkpoint(module, *arguments, use_reentrant=False, preserve_rng_state=False)


def _quiet() -> None:
    """Leaves progress and hints of the libraries out: DeltaW says itself what it loads, and errors are raised."""
    from diffusers.utils import logging as diffusers_logging
    from transformers.utils import logging as transformers_logging

    for logging in (diffusers_logging, transformers_logging):
        logging.set_verbosity_error()
        logging.disable_progress_bar()


def counter(tokenizer: Any, limit: int) -> Callable[[str], tuple[int, str]]:
    """A text to its number of tokens and the part beyond `limit` of them, of which the last is a special one."""

    def count(text: str) -> tuple[int, str]:
        tokens = tokenizer(text, truncation=False, verbose=False).input_ids
        return len(tokens), tokenizer.decode(tokens[limit - 1 : -1]) if len(tokens) > limit else ""

    return count


def padded(tokenizer: Any, texts: Sequence[str], n_tok: int | None = None) -> Tensor:
    """n texts as token numbers (n, n_tok), cut off or filled up to what the encoder reads: by default the tokenizer's length."""
    length = n_tok or tokenizer.model_max_length
    return tokenizer(
        list(texts), padding="max_length", truncation=True, max_length=length, return_tensors="pt"
    ).input_ids


def as_rows(tokens: Tensor, pooled: Tensor) -> Tensor:
    """An encoded text as one tensor: tokens' vectors (n, n_tok, width), and a pooled one (n, n_pooled) as a row filled up with zeros."""
    row = functional.pad(pooled, (0, tokens.shape[-1] - pooled.shape[-1]))
    return torch.cat([tokens, row[:, None].to(tokens)], 1)
