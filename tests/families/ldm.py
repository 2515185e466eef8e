"""Writes a diffusers folder as the single file that its published original would be, by names spelled out here."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

RESNET = {
    "norm1": "in_layers.0", "conv1": "in_layers.2", "time_emb_proj": "emb_layers.1", "norm2": "out_layers.0",
    "conv2": "out_layers.3", "conv_shortcut": "skip_connection",
}  # fmt: skip
VAE_RESNET = {"conv_shortcut": "nin_shortcut"}
VAE_ATTENTION = {"group_norm": "norm", "to_q": "q", "to_k": "k", "to_v": "v", "to_out.0": "proj_out"}
OPENCLIP = {
    "self_attn.out_proj": "attn.out_proj", "mlp.fc1": "mlp.c_fc", "mlp.fc2": "mlp.c_proj", "layer_norm1": "ln_1",
    "layer_norm2": "ln_2",
}  # fmt: skip


def single_file(base: Path, out: Path, *, more: Mapping[str, torch.Tensor] | None = None) -> dict[str, torch.Tensor]:
    """A base of SD 1.x, 2.x or XL as a single file with `more` tensors; returns all of them."""
    is_xl = (base / "text_encoder_2").is_dir()
    is_v2 = not is_xl and bool(json.loads((base / "unet" / "config.json").read_text()).get("use_linear_projection"))
    tensors = {f"model.diffusion_model.{k}": v for k, v in _unet(_weights(base / "unet")).items()}
    tensors |= {f"first_stage_model.{k}": v for k, v in _vae(_weights(base / "vae")).items()}
    text = _clip(base / "text_encoder")
    if is_v2:
        tensors |= {f"cond_stage_model.model.{k}": v for k, v in _openclip(text).items()}
    else:
        start = "conditioner.embedders.0.transformer." if is_xl else "cond_stage_model.transformer."
        tensors |= {f"{start}{k}": v for k, v in text.items()}
        tensors[f"{start}text_model.embeddings.position_ids"] = torch.arange(77)[None]
    if is_xl:
        second = _openclip(_clip(base / "text_encoder_2"))
        tensors |= {f"conditioner.embedders.1.model.{k}": v for k, v in second.items()}
    tensors |= more or {}
    save_file({k: v.contiguous() for k, v in tensors.items()}, out)
    return tensors


def _weights(folder: Path) -> dict[str, torch.Tensor]:
    return {k: v for file in sorted(folder.glob("*.safetensors")) for k, v in load_file(file).items()}


def _clip(folder: Path) -> dict[str, torch.Tensor]:
    """By the names of published files, which transformers 5 writes without their first word."""
    roots = ("embeddings.", "encoder.", "final_layer_norm.")
    return {f"text_model.{k}" if k.startswith(roots) else k: v for k, v in _weights(folder).items()}


def _unet(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    n_layers = 1 + max(int(m[1]) for k in weights if (m := re.match(r"down_blocks\.0\.resnets\.(\d+)", k)))
    attended = {m[1] for k in weights if (m := re.match(r"(up_blocks\.\d+)\.attentions", k))}
    outside = {
        "conv_in": "input_blocks.0.0", "conv_norm_out": "out.0", "conv_out": "out.2", "time_embedding.linear_1": "time_embed.0",
        "time_embedding.linear_2": "time_embed.2", "add_embedding.linear_1": "label_emb.0.0", "add_embedding.linear_2": "label_emb.0.2",
    }  # fmt: skip

    def name(key: str) -> str:
        path, _, leaf = key.rpartition(".")
        if path in outside:
            return f"{outside[path]}.{leaf}"
        words = key.split(".")
        if words[0] == "mid_block":
            kind, i, rest = words[1], int(words[2]), ".".join(words[3:])
            return (
                f"middle_block.{2 * i + (kind == 'attentions')}.{_renamed(rest, RESNET if kind == 'resnets' else {})}"
            )
        side, block, kind, i, rest = words[0], int(words[1]), words[2], int(words[3]), ".".join(words[4:])
        rest = _renamed(rest, RESNET if kind == "resnets" else {})
        if side == "down_blocks":
            at = 1 + block * (n_layers + 1)
            return (
                f"input_blocks.{at + n_layers}.0.op.{leaf}"
                if kind == "downsamplers"
                else f"input_blocks.{at + i}.{int(kind == 'attentions')}.{rest}"
            )
        at = block * (n_layers + 1)
        if kind == "upsamplers":
            return f"output_blocks.{at + n_layers}.{1 + (f'up_blocks.{block}' in attended)}.conv.{leaf}"
        return f"output_blocks.{at + i}.{int(kind == 'attentions')}.{rest}"

    return {name(key): tensor for key, tensor in weights.items()}


def _vae(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    n_blocks = 1 + max(int(m[1]) for k in weights if (m := re.match(r"decoder\.up_blocks\.(\d+)", k)))
    made = {}
    for key, tensor in weights.items():
        words = key.split(".")
        name = key.replace("conv_norm_out", "norm_out")
        if words[1] == "mid_block":
            kind, i, rest = words[2], int(words[3]), ".".join(words[4:])
            attention = kind == "attentions"
            rest = _renamed(rest, VAE_ATTENTION if attention else VAE_RESNET)
            name = f"{words[0]}.mid.{'attn' if attention else 'block'}_{i + 1}.{rest}"
            tensor = tensor[..., None, None] if attention and tensor.dim() == 2 else tensor
        elif words[1] in ("down_blocks", "up_blocks"):
            way = words[1].removesuffix("_blocks")
            block = int(words[2]) if way == "down" else n_blocks - 1 - int(words[2])
            rest = _renamed(".".join(words[5:]), VAE_RESNET)
            name = f"{words[0]}.{way}.{block}." + (
                f"block.{words[4]}.{rest}" if words[3] == "resnets" else f"{way}sample.{rest}"
            )
        made[name] = tensor
    return made


def _openclip(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    made, fused = {}, {}
    for key, tensor in weights.items():
        path = key.removeprefix("text_model.")
        if path.startswith("encoder.layers."):
            number, _, rest = path.removeprefix("encoder.layers.").partition(".")
            block = f"transformer.resblocks.{number}"
            if match := re.fullmatch(r"self_attn\.([qkv])_proj\.(weight|bias)", rest):
                fused.setdefault(f"{block}.attn.in_proj_{match[2]}", {})[match[1]] = tensor
            else:
                made[f"{block}.{_renamed(rest, OPENCLIP)}"] = tensor
        elif path == "text_projection.weight":
            made["text_projection"] = tensor.t()
        elif path == "embeddings.position_embedding.weight":
            made["positional_embedding"] = tensor
        else:
            made[
                path.replace("embeddings.token_embedding", "token_embedding").replace("final_layer_norm", "ln_final")
            ] = tensor
    made |= {key: torch.cat([parts[name] for name in "qkv"]) for key, parts in fused.items()}
    return made


def _renamed(rest: str, names: Mapping[str, str]) -> str:
    path, _, leaf = rest.rpartition(".")
    return f"{names.get(path, path)}.{leaf}"
