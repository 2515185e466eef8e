"""Stable Diffusion 3 and 3.5."""

from __future__ import annotations

from deltaw.families import mmdit
from deltaw.families.family import Component, Family

FAMILY = Family(
    name="sd3",
    title="Stable Diffusion 3 and 3.5",
    architecture="stable-diffusion-3-medium",
    kohya_version="sd3_m",
    components=(
        Component("transformer", "lora_unet", "diffusion_model", ("lora_transformer", "lycoris", "oft_unet")),
        Component("text_encoder", "lora_te1", "text_encoders.clip_l.transformer"),
        Component("text_encoder_2", "lora_te2", "text_encoders.clip_g.transformer"),
        Component("text_encoder_3", "lora_te3", "text_encoders.t5xxl.transformer"),
    ),
    variants=("sd3-medium", "sd35-medium", "sd35-large"),
    original=mmdit.original,
)
