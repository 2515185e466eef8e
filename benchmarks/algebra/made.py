"""LoRAs and checkpoints of true shapes, random but with the decay that trained ones have."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch

from deltaw import formats, tensorfile
from deltaw.delta import Delta, Update
from deltaw.families import listing

ATTENTION = (".to_q", ".to_k", ".to_v", ".to_out.0")
MORE = (*ATTENTION, ".ff.net.0.proj", ".ff.net.2", ".proj_in", ".proj_out")


def modules(variant: str, ends: tuple[str, ...]) -> list[str]:
    """The denoiser's modules with these ends."""
    return [
        path for path in listing.modules(variant) if path.startswith(("unet.", "transformer.")) and path.endswith(ends)
    ]


def lora(family: str, variant: str, ends: tuple[str, ...], rank: int, path: Path, seed: int) -> None:
    """A float16 LoRA whose singular values fall by three decades over its ranks."""
    generator = torch.Generator().manual_seed(seed)
    decay = torch.logspace(0, -1.5, rank)
    updates: dict[str, Update] = {}
    for name in modules(variant, ends):
        n_out, *rest = listing.modules(variant)[name]
        ones = (1,) * (len(rest) - 1)
        up = torch.randn(n_out, rank, generator=generator) * decay * 0.02
        down = torch.randn(rank, *rest, generator=generator) * decay.reshape(-1, *(1,) * len(rest)) * 0.02
        updates[name] = Update(
            "lora",
            {"up": up.reshape(n_out, rank, *ones).half(), "down": down.half(), "alpha": torch.tensor(float(rank))},
        )
    formats.save(Delta(family, updates), path)


def checkpoint(folder: Path, change: Callable[[str, torch.Tensor], torch.Tensor] | None = None) -> Path:
    """A base of SD 1.5's shapes in float16, about 1.9 GB, in diffusers' layout; `change` alters weights in float32."""
    for component, name in (("unet", "diffusion_pytorch_model"), ("text_encoder", "model")):
        shapes = {
            p.removeprefix(f"{component}."): s
            for p, s in listing.modules("sd1").items()
            if p.startswith(f"{component}.")
        }
        described = {f"{path}.weight": ("F16", shape) for path, shape in shapes.items()}

        def get(key: str, shapes=shapes, component=component) -> torch.Tensor:
            path = key.removesuffix(".weight")
            seed = int.from_bytes(f"{component}{path}".encode()[-6:], "little")
            weight = torch.randn(shapes[path], generator=torch.Generator().manual_seed(seed)) * 0.03
            return (change(f"{component}.{path}", weight) if change else weight).half()

        tensorfile.stream(folder / component / f"{name}.safetensors", described, get)
        tensorfile.write_text(
            folder / component / "config.json", '{"architectures": ["CLIPTextModel"]}' if "text" in component else "{}"
        )
    return folder


def decaying(path: str, weight: torch.Tensor) -> torch.Tensor:
    """W + ΔW with ΔW of rank 64 whose singular values halve every six, in every matrix of the denoiser."""
    if weight.ndim < 2 or not path.startswith("unet."):
        return weight
    generator = torch.Generator().manual_seed(len(path) * 7919 + weight.numel())
    matrix = weight.flatten(1)
    rank = min(64, *matrix.shape)
    s = 0.5 ** (torch.arange(rank) / 6)
    up = torch.randn(matrix.shape[0], rank, generator=generator) / matrix.shape[0] ** 0.5
    down = torch.randn(rank, matrix.shape[1], generator=generator) / matrix.shape[1] ** 0.5
    return weight + ((up * s) @ down).reshape(weight.shape)
