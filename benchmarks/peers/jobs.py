"""What the trainers are given: a base and a folder of captioned pictures, as each of them wants it."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
from PIL import Image
from transformers import CLIPTextConfig

from deltaw import device as devices
from deltaw.data import folder as pictures
from deltaw.data import image
from deltaw.families.networks import VARIANTS
from deltaw.zoo import bundled_base

VAE = {
    "block_out_channels": (128, 256, 512, 512), "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4, "layers_per_block": 2, "latent_channels": 4,
}  # fmt: skip
SHAPES: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    "sd15": ("sd1", {"sample_size": 64}, {"sample_size": 512, "scaling_factor": 0.18215}),
    "sdxl": ("sdxl", {"sample_size": 128}, {"sample_size": 1024, "scaling_factor": 0.13025}),
}
"""Base to the variant of `families.networks` and what is said of its UNet and VAE beside it."""


@dataclass(frozen=True)
class Job:
    """One piece of work, the same for every trainer.

    Args:
        base: a diffusers folder.
        pictures: with one .txt a picture; `listed`: the same with a metadata.jsonl; `counted`: in a folder
            "1_NAME" of its parent, as sd-scripts wants it.
        px, batch, steps, rank: of the training.
    """

    base: Path
    pictures: Path
    px: int
    batch: int
    steps: int
    rank: int = 8

    @property
    def listed(self) -> Path:
        return self.pictures.with_name("listed")

    @property
    def counted(self) -> Path:
        return self.pictures.with_name("counted")


def prepare(source: Path, scratch: Path, px: int) -> Path:
    """Makes a folder of pictures in the three forms, each picture of `px` × `px`, so that no trainer sees smaller ones; gives the first."""
    found = pictures.scan(source).pictures
    plain, listed, counted = scratch / "plain", scratch / "listed", scratch / "counted" / "1_pictures"
    for out in (plain, listed, counted):
        out.mkdir(parents=True)
    rows = []
    for i, picture in enumerate(found):
        name = f"{i:03d}.png"
        square = Image.fromarray(image.fit(image.load(picture.path), (px, px)))
        for out in (plain, listed, counted):
            square.save(out / name)
        for out in (plain, counted):
            (out / name).with_suffix(".txt").write_text(picture.caption, "utf-8")
        rows.append(json.dumps({"file_name": name, "text": picture.caption}))
    (listed / "metadata.jsonl").write_text("\n".join(rows) + "\n", "utf-8")
    return plain


def base_of(shapes: str, out: Path) -> Path:
    """A base of a published one's shapes ("sd15", 2.1 GB, or "sdxl", 7 GB) with random weights in float16; made once."""
    if (out / "model_index.json").is_file():
        return out
    variant, unet, vae = SHAPES[shapes]
    parts = VARIANTS[variant]
    index = json.loads((bundled_base() / "model_index.json").read_text("utf-8"))
    torch.manual_seed(0)
    torch.set_default_dtype(torch.float16)  # in float32 the larger one would not fit
    with devices.choose()[0]:  # a GPU draws the numbers in no time
        for name, (kind, config) in parts.items():
            if name == "unet":
                UNet2DConditionModel(**{**config, **unet}).save_pretrained(out / name)
                continue
            kind(CLIPTextConfig(**config)).save_pretrained(out / name)
            words = name.replace("text_encoder", "tokenizer")
            shutil.copytree(bundled_base() / "tokenizer", out / words, dirs_exist_ok=True)
            index |= {name: ["transformers", kind.__name__], words: index["tokenizer"]}
        AutoencoderKL(**VAE, **vae).save_pretrained(out / "vae")
    torch.set_default_dtype(torch.float32)
    DDIMScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", clip_sample=False, steps_offset=1
    ).save_pretrained(out / "scheduler")
    if "text_encoder_2" in parts:
        index = {k: v for k, v in index.items() if "safety" not in k} | {"_class_name": "StableDiffusionXLPipeline"}
    (out / "model_index.json").write_text(json.dumps(index), "utf-8")  # last: its being there means that all is
    return out
