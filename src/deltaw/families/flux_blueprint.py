"""FLUX.1's networks on the meta device."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from diffusers.models.transformers.transformer_flux import FluxTransformer2DModel
from torch import nn
from transformers import CLIPTextConfig, CLIPTextModel, T5Config, T5EncoderModel

from deltaw.families import flux
from deltaw.families.blueprint import META, Blueprint, frozen


class FluxBlueprint(Blueprint):
    """What FLUX.1's networks would do: "transformer", "vae", "text_encoder" (CLIP's) and "text_encoder_2" (T5's)."""

    text_dtype: ClassVar[torch.dtype] = flux.TEXT_DTYPE

    def text_encoders(self) -> nn.ModuleList:
        """CLIP's and T5's encoder, frozen, as they are used."""
        with META:
            clip = CLIPTextModel(CLIPTextConfig(**self.configs["text_encoder"]))
            t5 = T5EncoderModel(T5Config(**self.configs["text_encoder_2"]))
        return nn.ModuleList([frozen(model, self.text_dtype) for model in (clip, t5)])

    def encode(self, encoders: nn.ModuleList, n: int) -> list[Any]:
        """What `text_encoders` make of n texts."""
        lengths = (self.n_tok, flux.N_TOK)
        return [
            model(torch.empty(n, n_tok, dtype=torch.long, device=META))
            for model, n_tok in zip(encoders, lengths, strict=True)
        ]

    def questions(self, n: int, size_px: tuple[int, int], dtype: torch.dtype) -> dict[str, Any]:
        """The transformer's arguments for n pictures of a size (width, height)."""
        transformer = self.configs["transformer"]
        x = self.latents(n, size_px).to(dtype)

        def empty(*shape: int) -> torch.Tensor:
            return torch.empty(shape, dtype=dtype, device=META)

        return flux.arguments(
            transformer, x, empty(n), empty(n, flux.N_TOK, transformer["joint_attention_dim"]),
            empty(n, transformer["pooled_projection_dim"]),
        )  # fmt: skip

    def _network(self, dtype: torch.dtype) -> Any:
        return self._made(FluxTransformer2DModel, "transformer", dtype)
