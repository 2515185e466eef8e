"""FLUX.1's and Stable Diffusion 3's networks on the meta device."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from diffusers.models.transformers.transformer_flux import FluxTransformer2DModel
from diffusers.models.transformers.transformer_sd3 import SD3Transformer2DModel
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, T5Config, T5EncoderModel

from deltaw import int8
from deltaw.families import flux, sd_3
from deltaw.families.blueprint import META, Blueprint, frozen
from deltaw.families.flow import TEXT_DTYPE
from deltaw.families.sd3_check import T5


class FluxBlueprint(Blueprint):
    """What FLUX.1's networks would do: "transformer", "vae", "text_encoder" (CLIP's) and "text_encoder_2" (T5's)."""

    text_dtype: ClassVar[torch.dtype] = TEXT_DTYPE

    def text_encoders(self, *, packed: bool = False) -> nn.ModuleList:
        """CLIP's and T5's encoder, frozen, as they are used."""
        with META:
            clip = CLIPTextModel(CLIPTextConfig(**self.configs["text_encoder"]))
            t5 = T5EncoderModel(T5Config(**self.configs["text_encoder_2"]))
        return nn.ModuleList([frozen(clip, self.text_dtype), _t5(t5, self.text_dtype, packed=packed)])

    def encode(self, encoders: nn.ModuleList, n: int) -> list[Any]:
        """What `text_encoders` make of n texts."""
        clip, t5 = encoders
        return [clip(_tokens(n, self.n_tok)), t5(_tokens(n, flux.N_TOK))]

    def questions(self, n: int, size_px: tuple[int, int], dtype: torch.dtype) -> dict[str, Any]:
        """The transformer's arguments for n pictures of a size (width, height)."""
        transformer = self.configs["transformer"]
        text = (n, flux.N_TOK, transformer["joint_attention_dim"]), (n, transformer["pooled_projection_dim"])
        x, noise = self.latents(n, size_px).to(dtype), torch.empty(n, dtype=dtype, device=META)
        return flux.arguments(transformer, x, noise, *_empty(dtype, *text))

    def _network(self, dtype: torch.dtype) -> Any:
        return self._made(FluxTransformer2DModel, "transformer", dtype)


class StableDiffusion3Blueprint(Blueprint):
    """What Stable Diffusion 3's networks would do: "transformer", "vae", two CLIPs' "text_encoder" and "text_encoder_2", and T5's "text_encoder_3" where it is there."""

    text_dtype: ClassVar[torch.dtype] = TEXT_DTYPE

    def text_encoders(self, *, packed: bool = False) -> nn.ModuleList:
        """The CLIPs' encoders and T5's, if any, frozen, as they are used."""
        with META:
            clips = [
                CLIPTextModelWithProjection(CLIPTextConfig(**self.configs[p]))
                for p in ("text_encoder", "text_encoder_2")
            ]
            t5 = [T5EncoderModel(T5Config(**self.configs[T5]))] if T5 in self.configs else []
        seen = [frozen(model, self.text_dtype) for model in clips]
        return nn.ModuleList([*seen, *(_t5(model, self.text_dtype, packed=packed) for model in t5)])

    def encode(self, encoders: nn.ModuleList, n: int) -> list[Any]:
        """What `text_encoders` make of n texts; of the CLIPs every layer's result is kept, since the last but one is read."""
        seen = [clip(_tokens(n, self.n_tok), output_hidden_states=True) for clip in encoders[:2]]
        return [*seen, *(t5(_tokens(n, sd_3.N_T5_TOK)) for t5 in encoders[2:])]

    def questions(self, n: int, size_px: tuple[int, int], dtype: torch.dtype) -> dict[str, Any]:
        """The transformer's arguments for n pictures of a size (width, height)."""
        transformer, rows = self.configs["transformer"], self.n_tok + sd_3.N_T5_TOK
        text = (n, rows, transformer["joint_attention_dim"]), (n, transformer["pooled_projection_dim"])
        x, noise = self.latents(n, size_px).to(dtype), torch.empty(n, device=META)
        return sd_3.arguments(x, noise, *_empty(dtype, *text))

    def _network(self, dtype: torch.dtype) -> Any:
        return self._made(SD3Transformer2DModel, "transformer", dtype)


def _t5(encoder: nn.Module, dtype: torch.dtype, *, packed: bool) -> nn.Module:
    """The encoder, frozen, as `Flow.t5` loads it."""
    found = frozen(encoder, dtype)
    if packed:
        int8.pack_all(found)
    return found


def _tokens(n: int, n_tok: int) -> Tensor:
    return torch.empty(n, n_tok, dtype=torch.long, device=META)


def _empty(dtype: torch.dtype, *shapes: tuple[int, ...]) -> list[Tensor]:
    return [torch.empty(shape, dtype=dtype, device=META) for shape in shapes]
