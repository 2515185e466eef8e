"""Stable Diffusion 1.x and 2.x: how a UNet, a CLIP text encoder and an AutoencoderKL belong together; `sd_xl` says what differs in XL."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from deltaw.diffusion import objective, schedule
from deltaw.families import solvers
from deltaw.families.base import Base, counter, padded
from deltaw.families.base_folder import BaseFolder


class StableDiffusion(Base):
    """An opened base of Stable Diffusion 1.x or 2.x."""

    guidance: ClassVar[float] = 7.5
    targets: ClassVar[str] = r"attn[12]\.to_(q|k|v|out\.0)$"

    def __init__(self, folder: BaseFolder, family: str):
        super().__init__(folder, family)
        self.objective = objective.named(folder.configs["scheduler"].get("prediction_type", "epsilon"))
        self.samplers = solvers.usable(folder.configs["scheduler"])
        self.schedule = schedule.from_alphas_cumprod(self._scheduler().alphas_cumprod)

    @property
    def resolution_px(self) -> int:
        """The side of the pictures that the base was trained on."""
        return int(self.config["sample_size"]) * self.factor

    @property
    def bucket_step_px(self) -> int:
        """Sides of training pictures are multiples of this: what the UNet can halve without a rest."""
        return self.factor * 2 ** (len(self.config["block_out_channels"]) - 1)

    @property
    def text_shape(self) -> tuple[int, int]:
        """Rows and width of an encoded text: its tokens' vectors."""
        text = self.folder.configs["text_encoder"]
        return int(text.get("max_position_embeddings", 77)), int(text["hidden_size"])

    def _scheduler(self) -> Any:
        from diffusers.schedulers.scheduling_ddim import DDIMScheduler

        return DDIMScheduler.from_pretrained(self.folder.path, subfolder="scheduler", local_files_only=True)

    def count_tokens(self) -> Callable[[str], tuple[int, str]]:
        """A text to its number of tokens, the two special ones included, and the part that the encoder cuts off."""
        tokenizer = self.tokenizer()
        return counter(tokenizer, tokenizer.model_max_length)

    def text_encoder(self, device: torch.device, *, packed: bool = False) -> Callable[[Sequence[str]], Tensor]:  # noqa: ARG002
        """Loads tokenizer and text encoder; returns n captions -> (n, n_tok, width), float32 on the CPU."""
        from transformers import CLIPTextModel

        tokenizer = self.tokenizer()
        model = self._load(CLIPTextModel, "text_encoder", device, torch.float32)

        @torch.no_grad()
        def encode(captions: Sequence[str]) -> Tensor:
            return model(padded(tokenizer, captions).to(device))[0].cpu()

        return encode

    def denoise(self, network: nn.Module, x: Tensor, times: Tensor, text: Tensor) -> Tensor:
        """What the UNet predicts for x (n, c, h, w) at integer times (n,) and text (n, *`text_shape`)."""
        return network(x, times, encoder_hidden_states=text, return_dict=False)[0]

    def embed(self, pipe: Any, texts: Sequence[str]) -> Tensor:
        """n texts as the text encoders of an opened pipeline read them: (n, *`text_shape`)."""
        return pipe.encode_prompt(list(texts), pipe.device, 1, False)[0]

    def told(self, pipe: Any, prompts: Sequence[str], guidance: float) -> dict[str, Tensor | None]:
        """What the pipeline can be called with instead of prompts."""
        tokens, negative = pipe.encode_prompt(list(prompts), pipe.device, 1, guidance > 1)
        return {"prompt_embeds": tokens, "negative_prompt_embeds": negative}

    def _kind(self) -> Any:
        from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel

        return UNet2DConditionModel

    def _pipeline(self) -> tuple[Any, dict[str, Any]]:
        from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion import StableDiffusionPipeline

        return StableDiffusionPipeline, {
            "safety_checker": None,
            "feature_extractor": None,
            "requires_safety_checker": False,
        }
