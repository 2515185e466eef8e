"""Stable Diffusion 1.x and 2.x: encoding, denoising and drawing with a base; what differs in XL is in `sd_xl`.

The one place that knows how a UNet, a CLIP text encoder and an AutoencoderKL belong together.
Networks, tokenizer, schedulers and the pipeline are those of diffusers and transformers, unmodified.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from deltaw import device as devices
from deltaw.diffusion import objective, schedule
from deltaw.families import kernels, weights
from deltaw.families.base_folder import BaseFolder

TARGETS = r"attn[12]\.to_(q|k|v|out\.0)$"
"""Q, K, V and O of every attention layer, as in the LoRA paper and in every peer's default."""


class StableDiffusion:
    """An opened base; networks are loaded when asked for and belong to whoever asked.

    Args:
        folder: the checked diffusers folder.
        family: its name in `families.ALL`.
    """

    guidance = 7.5
    """How far drawing is guided where nothing else is said, as in diffusers' pipeline."""

    def __init__(self, folder: BaseFolder, family: str):
        self.folder = folder
        self.family = family
        unet, vae = folder.configs["unet"], folder.configs["vae"]
        self.factor = 2 ** (len(vae["block_out_channels"]) - 1)
        self.resolution_px = int(unet["sample_size"]) * self.factor
        self.objective = objective.named(folder.configs["scheduler"].get("prediction_type", "epsilon"))
        self.schedule = schedule.from_alphas_cumprod(self._scheduler().alphas_cumprod)
        self.targets = TARGETS

    @property
    def bucket_step_px(self) -> int:
        """Sides of training pictures are multiples of this: what the UNet can halve without a rest."""
        return self.factor * 2 ** (len(self.folder.configs["unet"]["block_out_channels"]) - 1)

    @property
    def text_shape(self) -> tuple[int, int]:
        """Rows and width of an encoded text: its tokens' vectors."""
        text = self.folder.configs["text_encoder"]
        return int(text.get("max_position_embeddings", 77)), int(text["hidden_size"])

    def _scheduler(self) -> Any:
        from diffusers.schedulers.scheduling_ddim import DDIMScheduler

        return DDIMScheduler.from_pretrained(self.folder.path, subfolder="scheduler", local_files_only=True)

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

    def tokenizer(self, part: str = "tokenizer") -> Any:
        """The CLIP tokenizer of the base."""
        from transformers import CLIPTokenizer

        return CLIPTokenizer.from_pretrained(self.folder.path / part, local_files_only=True)

    def count_tokens(self) -> Callable[[str], tuple[int, str]]:
        """A text to its number of tokens, the two special ones included, and the part that the encoder cuts off."""
        tokenizer = self.tokenizer()
        limit = tokenizer.model_max_length

        def count(text: str) -> tuple[int, str]:
            tokens = tokenizer(text, truncation=False, verbose=False).input_ids
            return len(tokens), tokenizer.decode(tokens[limit - 1 : -1]) if len(tokens) > limit else ""

        return count

    def text_encoder(self, device: torch.device) -> Callable[[Sequence[str]], Tensor]:
        """Loads tokenizer and text encoder; returns n captions -> (n, n_tok, width), float32 on the CPU."""
        from transformers import CLIPTextModel

        tokenizer = self.tokenizer()
        model = self._load(CLIPTextModel, "text_encoder", device, torch.float32)

        @torch.no_grad()
        def encode(captions: Sequence[str]) -> Tensor:
            return model(padded(tokenizer, captions).to(device))[0].cpu()

        return encode

    def denoiser(self, device: torch.device, dtype: torch.dtype, *, checkpointing: bool = False) -> nn.Module:
        """The UNet, frozen and in evaluation mode, computing in the way that is fastest there.

        With `checkpointing` each block's activations are computed again in the backward pass (Chen et al. 2016,
        arXiv 1604.06174): the gradients are the same, for less memory and a third to a half more time.
        """
        from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel

        _quiet()
        files = self.folder.weights("unet")
        found = weights.load(UNet2DConditionModel, self.folder.configs["unet"], files, device, dtype)
        network: Any = found or self._load(UNet2DConditionModel, "unet", device, dtype)
        if checkpointing:
            network.enable_gradient_checkpointing()
        kernels.speed_up(network, device, dtype)
        devices.trim()  # of every weight there was a copy in the file's precision
        return network

    def denoise(self, unet: nn.Module, x: Tensor, times: Tensor, text: Tensor) -> Tensor:
        """What the UNet predicts for x (n, c, h, w) at integer times (n,) and text (n, *`text_shape`)."""
        return unet(x, times, encoder_hidden_states=text, return_dict=False)[0]

    def pipeline(self, device: torch.device, dtype: torch.dtype) -> Any:
        """The whole base as diffusers' own pipeline of its kind, without a progress bar of its own."""
        _quiet()
        kind, options = self._pipeline()
        pipe = kind.from_pretrained(
            self.folder.path, unet=self.denoiser(device, dtype), dtype=dtype, use_safetensors=True, local_files_only=True,
            **options,
        )  # fmt: skip
        pipe.set_progress_bar_config(disable=True)
        return pipe.to(device)

    def _pipeline(self) -> tuple[Any, dict[str, Any]]:
        """diffusers' pipeline class and what it is opened with."""
        from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion import StableDiffusionPipeline

        return StableDiffusionPipeline, {
            "safety_checker": None,
            "feature_extractor": None,
            "requires_safety_checker": False,
        }

    def embed(self, pipe: Any, texts: Sequence[str]) -> Tensor:
        """n texts as the text encoders of an opened pipeline read them: (n, *`text_shape`)."""
        return pipe.encode_prompt(list(texts), pipe.device, 1, False)[0]

    def _load(self, kind: Any, part: str, device: torch.device, dtype: torch.dtype) -> Any:
        _quiet()
        model = kind.from_pretrained(self.folder.path / part, dtype=dtype, use_safetensors=True, local_files_only=True)
        return model.to(device).eval().requires_grad_(False)


def _quiet() -> None:
    """Leaves progress and hints of the libraries out: DeltaW says itself what it loads, and errors are raised."""
    from diffusers.utils import logging as diffusers_logging
    from transformers.utils import logging as transformers_logging

    for logging in (diffusers_logging, transformers_logging):
        logging.set_verbosity_error()
        logging.disable_progress_bar()


def padded(tokenizer: Any, texts: Sequence[str]) -> Tensor:
    """n texts as token numbers (n, n_tok), cut off or filled up to what the encoder reads."""
    length = tokenizer.model_max_length
    return tokenizer(
        list(texts), padding="max_length", truncation=True, max_length=length, return_tensors="pt"
    ).input_ids
