"""Stable Diffusion XL 1.0."""

from __future__ import annotations

from deltaw.families import sgm
from deltaw.families.family import Component, Family

FAMILY = Family(
    name="sdxl",
    title="Stable Diffusion XL",
    architecture="stable-diffusion-xl-v1-base",
    kohya_version="sdxl_base_v1-0",
    components=(
        Component("unet", "lora_unet", "diffusion_model", ("lycoris", "oft_unet")),
        Component("text_encoder", "lora_te1", "text_encoders.clip_l.transformer"),
        Component("text_encoder_2", "lora_te2", "text_encoders.clip_g.transformer"),
    ),
    variants=("sdxl",),
    original=sgm.original,
)
