"""What the trainers are given: a base and a folder of captioned pictures, as each of them wants it."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel

from benchmarks.step_time import SD15
from deltaw.data import folder as pictures
from deltaw.zoo import bundled_base

VAE15 = {
    "block_out_channels": (128, 256, 512, 512),
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
    "layers_per_block": 2,
    "latent_channels": 4,
    "sample_size": 512,
    "scaling_factor": 0.18215,
}
TEXT15 = {
    "vocab_size": 49408,
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "max_position_embeddings": 77,
    "hidden_act": "quick_gelu",
    "projection_dim": 768,
}


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


def prepare(source: Path, scratch: Path) -> Path:
    """Copies a folder of pictures into the three forms; gives the first."""
    found = pictures.scan(source).pictures
    plain, listed, counted = scratch / "plain", scratch / "listed", scratch / "counted" / "1_pictures"
    for out in (plain, listed, counted):
        out.mkdir(parents=True)
    rows = []
    for picture in found:
        for out in (plain, listed, counted):
            shutil.copyfile(picture.path, out / picture.path.name)
        for out in (plain, counted):
            (out / picture.path.name).with_suffix(".txt").write_text(picture.caption, "utf-8")
        rows.append(json.dumps({"file_name": picture.path.name, "text": picture.caption}))
    (listed / "metadata.jsonl").write_text("\n".join(rows) + "\n", "utf-8")
    return plain


def sd15(out: Path) -> Path:
    """A base of Stable Diffusion 1.5's shapes with random weights in float16, about 2.1 GB; made once."""
    if (out / "model_index.json").is_file():
        return out
    torch.manual_seed(0)
    UNet2DConditionModel(**SD15).half().save_pretrained(out / "unet")
    AutoencoderKL(**VAE15).half().save_pretrained(out / "vae")
    CLIPTextModel(CLIPTextConfig(**TEXT15)).half().save_pretrained(out / "text_encoder")
    shutil.copytree(bundled_base() / "tokenizer", out / "tokenizer", dirs_exist_ok=True)
    (out / "scheduler").mkdir(exist_ok=True)
    scheduler = json.loads((bundled_base() / "scheduler" / "scheduler_config.json").read_text("utf-8"))
    scheduler["prediction_type"] = "epsilon"
    (out / "scheduler" / "scheduler_config.json").write_text(json.dumps(scheduler), "utf-8")
    index = (bundled_base() / "model_index.json").read_text("utf-8")
    (out / "model_index.json").write_text(index, "utf-8")  # last: its being there means that all is
    return out
