"""Stable Diffusion 2.x, with epsilon and with v-prediction: the networks are the same."""

from __future__ import annotations

from deltaw.families import sgm
from deltaw.families.family import Component, Family

FAMILY = Family(
    name="sd2",
    title="Stable Diffusion 2.x",
    architecture="stable-diffusion-v2-768-v",
    kohya_version="sd_v2_v",
    components=(
        Component("unet", "lora_unet", "diffusion_model", ("lycoris", "oft_unet")),
        Component("text_encoder", "lora_te", "text_encoders.clip_h.transformer"),
    ),
    variants=("sd2",),
    original=sgm.original,
    kohya_original=False,
)
