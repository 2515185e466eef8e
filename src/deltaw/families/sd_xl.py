"""Stable Diffusion XL (Podell et al. 2023, arXiv 2307.01952): what differs from its elders.

Two text encoders, whose last layers but one stand side by side; the second one's summary of the whole text; and the
picture's size, which the UNet is told.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from deltaw.families.base import TOLD_FOUR, as_rows, padded
from deltaw.families.sd import StableDiffusion

N_SIZES = 6
"""Height and width, top and left of the part that was cut out, height and width that are wanted."""


class StableDiffusionXL(StableDiffusion):
    """An opened base of SDXL.

    An encoded text is the tokens' vectors and, as one more row, the pooled one, filled up with zeros.
    """

    guidance: ClassVar[float] = 5.0

    @property
    def text_shape(self) -> tuple[int, int]:
        """Rows and width of an encoded text: its tokens' vectors of both encoders and the pooled one."""
        n_tok, _ = super().text_shape
        return n_tok + 1, int(self.config["cross_attention_dim"])

    def text_encoder(self, device: torch.device, *, packed: bool = False) -> Callable[[Sequence[str]], Tensor]:  # noqa: ARG002
        """Loads both tokenizers and text encoders; returns n captions -> (n, *`text_shape`), float32 on the CPU."""
        from transformers import CLIPTextModel, CLIPTextModelWithProjection

        tokenizers = self.tokenizer(), self.tokenizer("tokenizer_2")
        first = self._load(CLIPTextModel, "text_encoder", device, torch.float32)
        second = self._load(CLIPTextModelWithProjection, "text_encoder_2", device, torch.float32)

        @torch.no_grad()
        def encode(captions: Sequence[str]) -> Tensor:
            one, two = (
                model(padded(tokenizer, captions).to(device), output_hidden_states=True)
                for tokenizer, model in zip(tokenizers, (first, second), strict=True)
            )
            return as_rows(torch.cat([one.hidden_states[-2], two.hidden_states[-2]], -1), two.text_embeds).cpu()

        return encode

    def denoise(self, network: nn.Module, x: Tensor, times: Tensor, text: Tensor) -> Tensor:
        """What the UNet predicts for x (n, c, h, w) at integer times (n,) and text (n, *`text_shape`).

        It is told that the picture was never larger and is not cut, as diffusers' pipeline tells it when it draws at this
        size.
        """
        height, width = (side * self.factor for side in x.shape[2:])
        sizes = torch.zeros(len(x), 6, dtype=torch.int64, device=x.device)  # made there: nothing is sent to the device
        sizes[:, 0::4], sizes[:, 1::4] = (
            height,
            width,
        )  # of the picture; (0, 0) is cut off its top and left; of what is left
        added = {"text_embeds": text[:, -1, : n_pooled(self.config)], "time_ids": sizes}
        tokens = text[:, :-1].contiguous()  # once, and not in every layer that reads them
        return network(x, times, encoder_hidden_states=tokens, added_cond_kwargs=added, return_dict=False)[0]

    def embed(self, pipe: Any, texts: Sequence[str]) -> Tensor:
        """n texts as the text encoders of an opened pipeline read them: (n, *`text_shape`)."""
        tokens, _, pooled, _ = pipe.encode_prompt(list(texts), device=pipe.device, do_classifier_free_guidance=False)
        return as_rows(tokens, pooled)

    def told(self, pipe: Any, prompts: Sequence[str], guidance: float) -> dict[str, Tensor | None]:
        """What the pipeline can be called with instead of prompts."""
        said = pipe.encode_prompt(list(prompts), device=pipe.device, do_classifier_free_guidance=guidance > 1)
        return dict(zip(TOLD_FOUR, said, strict=True))

    def _pipeline(self) -> tuple[Any, dict[str, Any]]:
        from diffusers.pipelines.stable_diffusion_xl.pipeline_stable_diffusion_xl import StableDiffusionXLPipeline

        return StableDiffusionXLPipeline, {"add_watermarker": False, "image_encoder": None, "feature_extractor": None}


def n_pooled(unet: Mapping[str, Any]) -> int:
    """Numbers of the pooled text that the UNet of this config is told, beside `N_SIZES` sizes."""
    return int(unet["projection_class_embeddings_input_dim"]) - N_SIZES * int(unet["addition_time_embed_dim"])
