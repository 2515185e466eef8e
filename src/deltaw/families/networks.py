"""The families' networks on the meta device: true shapes, no memory, no download.

`python -m deltaw.families.networks` writes the listings in `families/modules/` anew.
"""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import torch
from diffusers import FluxTransformer2DModel, SD3Transformer2DModel, UNet2DConditionModel
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    PreTrainedModel,
    T5Config,
    T5EncoderModel,
)

from deltaw.families.listing import canonical
from deltaw.tensorfile import write_bytes

_CLIP_L: dict[str, Any] = {
    "hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12,
    "projection_dim": 768,
}  # fmt: skip
_CLIP_H: dict[str, Any] = {
    "hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 23, "num_attention_heads": 16,
    "projection_dim": 512, "hidden_act": "gelu",
}  # fmt: skip
_CLIP_G: dict[str, Any] = {
    "hidden_size": 1280, "intermediate_size": 5120, "num_hidden_layers": 32, "num_attention_heads": 20,
    "projection_dim": 1280, "hidden_act": "gelu",
}  # fmt: skip
_T5_XXL: dict[str, Any] = {
    "d_model": 4096, "d_kv": 64, "d_ff": 10240, "num_layers": 24, "num_heads": 64, "vocab_size": 32128,
    "feed_forward_proj": "gated-gelu",
}  # fmt: skip
_SDXL: dict[str, Any] = {
    "sample_size": 128, "block_out_channels": (320, 640, 1280), "layers_per_block": 2,
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    "transformer_layers_per_block": [1, 2, 10], "attention_head_dim": [5, 10, 20], "cross_attention_dim": 2048,
    "use_linear_projection": True, "addition_embed_type": "text_time", "addition_time_embed_dim": 256,
    "projection_class_embeddings_input_dim": 2816,
}  # fmt: skip
_SD3: dict[str, Any] = {
    "sample_size": 128, "in_channels": 16, "out_channels": 16, "num_layers": 24, "num_attention_heads": 24,
    "attention_head_dim": 64, "caption_projection_dim": 1536, "joint_attention_dim": 4096, "pooled_projection_dim": 2048,
    "pos_embed_max_size": 192,
}  # fmt: skip
_SD35_MEDIUM = {**_SD3, "pos_embed_max_size": 384, "qk_norm": "rms_norm", "dual_attention_layers": tuple(range(13))}
_SD35_LARGE = {
    **_SD3, "num_layers": 38, "num_attention_heads": 38, "caption_projection_dim": 2432, "qk_norm": "rms_norm",
}  # fmt: skip
_EMOJI: dict[str, Any] = {
    "sample_size": 16, "in_channels": 8, "out_channels": 8, "block_out_channels": (128, 192, 192, 192),
    "layers_per_block": 1, "norm_num_groups": 8, "attention_head_dim": 4, "cross_attention_dim": 256,
}  # fmt: skip
_EMOJI_CLIP: dict[str, Any] = {
    "vocab_size": 4096, "hidden_size": 256, "intermediate_size": 1024, "num_hidden_layers": 4, "num_attention_heads": 4,
    "projection_dim": 256, "bos_token_id": 4094, "eos_token_id": 4095,
}  # fmt: skip

VARIANTS: dict[str, dict[str, tuple[type, dict[str, Any]]]] = {
    "sd1": {"unet": (UNet2DConditionModel, {"sample_size": 64, "cross_attention_dim": 768}), "text_encoder": (CLIPTextModel, _CLIP_L)},
    "emoji": {"unet": (UNet2DConditionModel, _EMOJI), "text_encoder": (CLIPTextModel, _EMOJI_CLIP)},
    "sd2": {
        "unet": (UNet2DConditionModel, {"sample_size": 64, "cross_attention_dim": 1024, "attention_head_dim": [5, 10, 20, 20],
                                        "use_linear_projection": True}),
        "text_encoder": (CLIPTextModel, _CLIP_H),
    },
    "sdxl": {
        "unet": (UNet2DConditionModel, _SDXL),
        "text_encoder": (CLIPTextModel, _CLIP_L),
        "text_encoder_2": (CLIPTextModelWithProjection, _CLIP_G),
    },
    **{
        name: {
            "transformer": (SD3Transformer2DModel, config),
            "text_encoder": (CLIPTextModelWithProjection, _CLIP_L),
            "text_encoder_2": (CLIPTextModelWithProjection, _CLIP_G),
            "text_encoder_3": (T5EncoderModel, _T5_XXL),
        }
        for name, config in (("sd3-medium", _SD3), ("sd35-medium", _SD35_MEDIUM), ("sd35-large", _SD35_LARGE))
    },
    "flux1": {
        "transformer": (FluxTransformer2DModel, {"guidance_embeds": True}),
        "text_encoder": (CLIPTextModel, _CLIP_L),
        "text_encoder_2": (T5EncoderModel, _T5_XXL),
    },
}  # fmt: skip
"""Variant to component to network class and configuration, from the published bases' config files."""


def build(variant: str) -> dict[str, torch.nn.Module]:
    """The networks of a variant on the meta device, by component."""
    with torch.device("meta"):
        return {name: _network(cls, config) for name, (cls, config) in VARIANTS[variant].items()}


def listing(variant: str) -> dict[str, tuple[int, ...]]:
    """What `families/modules/` must hold for a variant: canonical path to weight shape, in network order."""
    found: dict[str, tuple[int, ...]] = {}
    for component, network in build(variant).items():
        is_clip = type(network).__name__.startswith("CLIP")
        for path, module in network.named_modules():
            weight = getattr(module, "weight", None)
            if isinstance(weight, torch.nn.Parameter):
                found[canonical(component, path, is_clip)] = tuple(weight.shape)
    return found


def _network(cls: type, config: dict[str, Any]) -> torch.nn.Module:
    if not issubclass(cls, PreTrainedModel):
        return cls(**config)
    return cls(T5Config(**config) if cls is T5EncoderModel else CLIPTextConfig(**config))


def main() -> None:
    """Writes every listing; the same networks give the same bytes."""
    folder = Path(__file__).parent / "modules"
    for variant in VARIANTS:
        packed = gzip.compress(json.dumps(listing(variant), separators=(",", ":")).encode(), mtime=0)
        write_bytes(folder / f"{variant}.json.gz", packed)


if __name__ == "__main__":
    main()
