"""Bases of published shapes with random weights, as diffusers' folders: nothing can be learnt from them, and everything can be timed."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, DDIMScheduler, FlowMatchEulerDiscreteScheduler
from transformers import CLIPTextConfig, T5Config, T5EncoderModel, T5Tokenizer

from deltaw import device as devices
from deltaw.families.networks import VARIANTS
from deltaw.families.skeleton import PUBLISHED, VAE
from deltaw.zoo import bundled_base

FLOW_VAE = {**VAE, "latent_channels": 16, "shift_factor": 0.1159, "use_quant_conv": False, "use_post_quant_conv": False}
SHAPES: dict[str, tuple[str, str, dict[str, Any], dict[str, Any]]] = {
    "sd15": ("sd1", PUBLISHED["sd1"].pipeline, {}, dict(PUBLISHED["sd1"].vae)),
    "sdxl": ("sdxl", PUBLISHED["sdxl"].pipeline, {}, dict(PUBLISHED["sdxl"].vae)),
    "flux1": ("flux1", "FluxPipeline", {}, {**FLOW_VAE, "sample_size": 1024, "scaling_factor": 0.3611}),
}  # fmt: skip
"""Base to the variant of `families.networks`, its pipeline, and what is said of its network and VAE beside the variant."""


def base_of(shapes: str, out: Path) -> Path:
    """A base of a published one's shapes in 16 bits ("sd15", 2.1 GB, "sdxl", 7 GB, or "flux1", 34 GB); made once."""
    if (out / "model_index.json").is_file():
        return out
    variant, pipeline, told, vae = SHAPES[shapes]
    index: dict[str, Any] = {"_class_name": pipeline, "vae": ["diffusers", "AutoencoderKL"]}
    torch.manual_seed(0)
    with _sixteen_bits(torch.bfloat16 if shapes == "flux1" else torch.float16):
        for name, (kind, config) in VARIANTS[variant].items():
            if name in ("unet", "transformer"):
                kind(**{**config, **told}).save_pretrained(out / name)
                index[name] = ["diffusers", kind.__name__]
                continue
            settings: Any = T5Config(**config) if kind is T5EncoderModel else CLIPTextConfig(**config)
            kind(settings).save_pretrained(out / name)
            words = name.replace("text_encoder", "tokenizer")
            _write_tokenizer(kind, out / words)
            index |= {
                name: ["transformers", kind.__name__],
                words: ["transformers", "T5TokenizerFast" if kind is T5EncoderModel else "CLIPTokenizer"],
            }
        AutoencoderKL(**vae).save_pretrained(out / "vae")
    scheduler = _flow() if shapes == "flux1" else _denoising()
    scheduler.save_pretrained(out / "scheduler")
    index["scheduler"] = ["diffusers", type(scheduler).__name__]
    (out / "model_index.json").write_text(json.dumps(index), "utf-8")  # last: its being there means that all is
    return out


@contextmanager
def _sixteen_bits(dtype: torch.dtype) -> Iterator[None]:
    """What is made is in `dtype` (in float32 the larger bases would not fit), and on a GPU, which draws the numbers in no time."""
    torch.set_default_dtype(dtype)
    try:
        with devices.choose()[0]:
            yield
    finally:
        torch.set_default_dtype(torch.float32)


def _write_tokenizer(kind: type, out: Path) -> None:
    if kind is not T5EncoderModel:
        shutil.copytree(bundled_base() / "tokenizer", out, dirs_exist_ok=True)
        return
    pieces = ["<pad>", "</s>", "<unk>", "▁", *"abcdefghijklmnopqrstuvwxyz0123456789,.-"]
    made = T5Tokenizer(vocab=[(piece, -float(i > 2)) for i, piece in enumerate(pieces)], extra_ids=0)
    made.model_max_length = 512
    made.save_pretrained(out)


def _denoising() -> DDIMScheduler:
    return DDIMScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", clip_sample=False, steps_offset=1
    )


def _flow() -> FlowMatchEulerDiscreteScheduler:
    return FlowMatchEulerDiscreteScheduler(
        shift=3.0, use_dynamic_shifting=True, base_shift=0.5, max_shift=1.15, base_image_seq_len=256, max_image_seq_len=4096
    )  # fmt: skip
