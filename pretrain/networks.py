"""The shapes of the base's networks, and how a base is written: the diffusers layout, fp16 safetensors.

SD 1.5's topology and module names at a fraction of its width, so that the LoRA keys are SD 1.5's.
"""

from __future__ import annotations

import json
from pathlib import Path

import diffusers
import torch
from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel

from deltaw import tensorfile

N_TOKENS = 77
BOS, EOS = 4094, 4095
LATENT_CHANNELS = 8
"""Four lose too much of this detail at a factor of eight."""


def vae() -> AutoencoderKL:
    """A KL autoencoder, factor 8. At least 4 channels a normalisation group: single ones lose the colour."""
    return AutoencoderKL(
        in_channels=3, out_channels=3, sample_size=128, latent_channels=LATENT_CHANNELS, layers_per_block=1,
        block_out_channels=(32, 64, 128, 128), norm_num_groups=8, scaling_factor=1.0,
        down_block_types=("DownEncoderBlock2D",) * 4, up_block_types=("UpDecoderBlock2D",) * 4,
    )  # fmt: skip


def text_encoder() -> CLIPTextModel:
    """CLIP's text transformer, 4 layers of width 256."""
    return CLIPTextModel(
        CLIPTextConfig(
            vocab_size=4096, hidden_size=256, intermediate_size=1024, projection_dim=256, num_hidden_layers=4,
            num_attention_heads=4, max_position_embeddings=N_TOKENS, bos_token_id=BOS, eos_token_id=EOS, pad_token_id=EOS,
        )
    )  # fmt: skip


def unet() -> UNet2DConditionModel:
    """Four levels, cross-attention in the first three, one layer a block."""
    return UNet2DConditionModel(
        sample_size=16, in_channels=LATENT_CHANNELS, out_channels=LATENT_CHANNELS, layers_per_block=1,
        block_out_channels=(128, 192, 192, 192), norm_num_groups=8, cross_attention_dim=256, attention_head_dim=4,
        down_block_types=("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",),
        up_block_types=("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3,
    )  # fmt: skip


def scheduler() -> DDIMScheduler:
    """Scaled-linear betas, v-prediction: with epsilon the composition is learned far later."""
    return DDIMScheduler(
        num_train_timesteps=1000, beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear",
        prediction_type="v_prediction", clip_sample=False, set_alpha_to_one=False, steps_offset=1,
    )  # fmt: skip


def write_text_encoder(encoder: CLIPTextModel, folder: Path) -> None:
    """In fp16, with the `text_model.` prefix that transformers 5 drops on save and older readers need."""
    folder.mkdir(parents=True, exist_ok=True)
    encoder.config.dtype = torch.float16
    encoder.config.architectures = ["CLIPTextModel"]
    encoder.config.save_pretrained(folder)
    prefix = "text_model."
    tensors = {
        prefix + name.removeprefix(prefix): t.half()
        for name, t in encoder.state_dict().items()
        if "position_ids" not in name
    }
    tensorfile.write(folder / "model.safetensors", tensors, {"format": "pt"})


def write_diffusers(
    network: AutoencoderKL | UNet2DConditionModel, folder: Path, weights: dict[str, torch.Tensor] | None = None
) -> None:
    """Configuration and fp16 weights; `weights` replaces the network's own (its average over time)."""
    folder.mkdir(parents=True, exist_ok=True)
    config = {
        k: v for k, v in json.loads(network.to_json_string()).items() if k != "_name_or_path"
    }  # where it once lay
    tensorfile.write_text(folder / "config.json", json.dumps(config, indent=2) + "\n")
    tensors = {name: t.half() for name, t in (weights or network.state_dict()).items()}
    tensorfile.write(folder / "diffusion_pytorch_model.safetensors", tensors, {"format": "pt"})


def write_index(folder: Path) -> None:
    """The scheduler's settings and the list of parts that make a folder a StableDiffusionPipeline."""
    scheduler().save_pretrained(folder / "scheduler")
    parts = {
        "scheduler": ["diffusers", "DDIMScheduler"], "text_encoder": ["transformers", "CLIPTextModel"],
        "tokenizer": ["transformers", "CLIPTokenizer"], "unet": ["diffusers", "UNet2DConditionModel"],
        "vae": ["diffusers", "AutoencoderKL"], "feature_extractor": [None, None], "image_encoder": [None, None],
        "safety_checker": [None, None],
    }  # fmt: skip
    index = {
        "_class_name": "StableDiffusionPipeline",
        "_diffusers_version": diffusers.__version__,
        "requires_safety_checker": False,
    }
    tensorfile.write_text(folder / "model_index.json", json.dumps(index | parts, indent=2) + "\n")
