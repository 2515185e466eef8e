"""FLUX.1 (dev and schnell; schnell has no guidance embedder, the rest is the same)."""

from __future__ import annotations

from deltaw.families import bfl
from deltaw.families.family import Component, Family

FAMILY = Family(
    name="flux1",
    title="FLUX.1",
    architecture="flux-1-dev",
    kohya_version="flux1",
    components=(
        Component("transformer", "lora_unet", "diffusion_model", ("lora_transformer", "lycoris", "oft_unet")),
        Component("text_encoder", "lora_te1", "text_encoders.clip_l.transformer"),
        Component("text_encoder_2", "lora_te3", "text_encoders.t5xxl.transformer", ("lora_te2",)),  # OneTrainer's
    ),
    variants=("flux1",),
    original=bfl.original,
)
