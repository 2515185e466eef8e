"""Stable Diffusion 1.x, and bases of its topology in other widths (the bundled one)."""

from __future__ import annotations

from deltaw.families import sgm
from deltaw.families.family import Component, Family

FAMILY = Family(
    name="sd1",
    title="Stable Diffusion 1.x",
    architecture="stable-diffusion-v1",
    kohya_version="sd_v1",
    components=(
        Component("unet", "lora_unet", "diffusion_model", ("lycoris", "oft_unet")),
        Component("text_encoder", "lora_te", "text_encoders.clip_l.transformer"),
    ),
    variants=("sd1", "emoji"),
    original=sgm.original,
    kohya_original=False,
)
