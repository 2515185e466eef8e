"""A base's folder without its weights: the configs and tokenizers that Stable Diffusion 1.x, 2.x and XL were published with.

A single file has none of them. They are facts of the network that it holds, except for what the network predicts.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from deltaw import zoo
from deltaw.families import clip_words
from deltaw.families.unet_check import SDXL_SCALE
from deltaw.tensorfile import write_text

VAE: dict[str, Any] = {
    "block_out_channels": (128, 256, 512, 512), "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4, "layers_per_block": 2, "latent_channels": 4, "sample_size": 512,
}  # fmt: skip
"""The autoencoder's config of Stable Diffusion 1.x and 2.x."""
_XL_VAE = {**VAE, "sample_size": 1024, "scaling_factor": SDXL_SCALE}


@dataclass(frozen=True)
class Published:
    """What a base was published with, beside its networks in `networks.VARIANTS`.

    Args:
        pipeline: diffusers' class of the whole.
        vae: the config of its autoencoder.
        padding: tokenizer to the token that texts are filled up with.
    """

    pipeline: str
    vae: Mapping[str, Any]
    padding: Mapping[str, str]


PUBLISHED: Mapping[str, Published] = {
    "sd1": Published("StableDiffusionPipeline", VAE, {"tokenizer": clip_words.END}),
    "sd2": Published("StableDiffusionPipeline", VAE, {"tokenizer": "!"}),
    "sdxl": Published("StableDiffusionXLPipeline", _XL_VAE, {"tokenizer": clip_words.END, "tokenizer_2": "!"}),
}
"""Variant of `families.networks` to what belongs to it."""
LARGER = {"sd2": 96}
"""`sample_size` where a base predicts v and that tells its resolution: Stable Diffusion 2's larger one, 768 px."""


def parts(variant: str) -> dict[str, nn.Module]:
    """Every network of a base on the meta device, its autoencoder too."""
    from diffusers import AutoencoderKL

    from deltaw.families import networks

    vae = PUBLISHED[variant].vae if variant in PUBLISHED else _read(zoo.bundled_base() / "vae" / "config.json")
    with torch.device("meta"):
        autoencoder: Any = AutoencoderKL.from_config(dict(vae))
    return {**networks.build(variant), "vae": autoencoder}


def write(variant: str, networks: Mapping[str, nn.Module], out: Path) -> None:
    """Writes the small files of a base that predicts noise; `predicting` says otherwise later.

    Of the bundled base's shapes they are copies of its own.

    Args:
        variant: of the base.
        networks: its `parts`.
        out: the folder.
    """
    if variant not in PUBLISHED:
        _copy_small(zoo.bundled_base(), out)
        return
    from diffusers import DDIMScheduler

    made = PUBLISHED[variant]
    index: dict[str, Any] = {"_class_name": made.pipeline}
    for name, network in networks.items():
        library = "transformers" if name.startswith("text") else "diffusers"
        index[name] = [library, type(network).__name__]
        _write_config(out / name / "config.json", _described(network))
    for name, padding in made.padding.items():
        clip_words.write(out / name, padding)
        index[name] = ["transformers", "CLIPTokenizer"]
    scheduler = DDIMScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", clip_sample=False, set_alpha_to_one=False, steps_offset=1,
    )  # fmt: skip
    index["scheduler"] = ["diffusers", "DDIMScheduler"]
    _write_config(out / "scheduler" / "scheduler_config.json", _plain(scheduler.config, "DDIMScheduler"))
    _write_config(out / "model_index.json", index)


def predicting(variant: str, out: Path, prediction: str, *, zero_snr: bool = False) -> None:
    """Has a written folder say what its network predicts.

    Args:
        variant: of the base.
        out: its folder.
        prediction: "epsilon" or "v_prediction".
        zero_snr: the last time is noise alone (Lin et al. 2023, arXiv 2305.08891, algorithm 1).
    """
    _change(out / "scheduler" / "scheduler_config.json", prediction_type=prediction, rescale_betas_zero_snr=zero_snr)
    if prediction == "v_prediction" and variant in LARGER:
        _change(out / "unet" / "config.json", sample_size=LARGER[variant])


def _described(network: Any) -> dict[str, Any]:
    name = type(network).__name__
    if hasattr(network.config, "to_diff_dict"):  # of transformers
        settings = {k: v for k, v in network.config.to_dict().items() if k != "transformers_version"}
        return {**settings, "architectures": [name]}
    return _plain(network.config, name)


def _plain(config: Mapping[str, Any], name: str) -> dict[str, Any]:
    """diffusers' config without what says which version wrote it: it would be another base in each."""
    return {"_class_name": name, **{key: value for key, value in config.items() if not key.startswith("_")}}


def _write_config(path: Path, config: Mapping[str, Any]) -> None:
    write_text(path, json.dumps(config, indent=2, sort_keys=True) + "\n")


def _change(path: Path, **said: Any) -> None:
    _write_config(path, {**_read(path), **said})


def _read(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text("utf-8"))


def _copy_small(base: Path, out: Path) -> None:
    """Of a folder all but the weights, and what tells of it to people."""
    for file in base.rglob("*"):
        if file.suffix in (".json", ".toml"):
            target = out / file.relative_to(base)
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(file, target)
