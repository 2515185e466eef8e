"""What a tensor file is that holds no LoRA, by its keys' beginnings."""

from __future__ import annotations

from collections.abc import Sequence

_KINDS = (
    (("lllite_",), "a ControlNet-LLLite"),
    (("control_model.", "controlnet_", "control_net."), "a ControlNet"),
    (("image_proj.", "ip_adapter."), "an IP-Adapter"),
    (("motion_modules.",), "a motion module"),
    (("model.diffusion_model.", "cond_stage_model.", "conditioner.", "first_stage_model."), "a whole checkpoint"),
    (("down_blocks.", "transformer_blocks.", "single_transformer_blocks.", "conv_in.", "time_embedding."), "a base's network itself"),
    (("text_model.", "encoder.block.", "shared."), "a text encoder itself"),
    (("encoder.", "decoder.", "quant_conv."), "a VAE"),
    (("base_model.model.model.layers.", "model.layers."), "a language model's adapter"),
)  # fmt: skip
"""Beginnings of keys to what has them; the first that fits is meant."""


def kind(names: Sequence[str]) -> str | None:
    """What a file with these keys is; None where that is not known."""
    for beginnings, title in _KINDS:
        if any(name.startswith(beginnings) for name in names):
            return title
    return None
