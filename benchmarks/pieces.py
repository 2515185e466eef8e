"""What single pieces gain and cost on one base: loading, encoding, attention's rounding, checkpointing.

    python -m benchmarks.pieces [--base FOLDER] [--px 256]

Loading: seconds, the second time, from a warm disk, in bfloat16. Encoding: seconds of a picture, and by how much what is decoded
differs (PSNR). Attention: how far a prediction in bfloat16 is from float32's, fused and plain. Checkpointing: a step as foretold.
The last two of random latents and texts.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel

from benchmarks.held_out import CPU, HERE
from deltaw.data import folder, image
from deltaw.families import bases
from deltaw.families.base import Base
from deltaw.families.blueprint import Blueprint
from deltaw.training import graph
from deltaw.zoo import bundled_base

HALF = torch.bfloat16


def second(work: Callable[[], Any]) -> tuple[float, Any]:
    """Seconds of the second time, and its result."""
    work()
    start = time.perf_counter()
    found = work()
    return time.perf_counter() - start, found


def stock(path: Path, dtype: torch.dtype) -> UNet2DConditionModel:
    """The network as diffusers loads it."""
    return UNet2DConditionModel.from_pretrained(path, subfolder="unet", torch_dtype=dtype).eval()


def loading(base: Base) -> None:
    ours_s, _ = second(lambda: base.denoiser(CPU, HALF))
    theirs_s, _ = second(lambda: stock(base.folder.path, HALF))
    print(f"loading the network: {ours_s:.2f} s, by diffusers {theirs_s:.2f} s")


@torch.no_grad()
def encoding(base: Base, px: int) -> None:
    found = [image.load(p.path, digest=p.digest) for p in folder.scan(HERE / "held_out" / "streamline").pictures[:8]]
    pictures = [image.fit(x, (px, px))[np.newaxis] for x in found]
    latents = []
    for dtype in (torch.float32, HALF):
        encode = base.image_encoder(CPU, dtype)
        encode(pictures[0])
        start = time.perf_counter()
        latents.append([encode(x) for x in pictures])
        print(f"encoding a picture of {px} px in {dtype}: {(time.perf_counter() - start) / len(pictures):.2f} s")
    vae = AutoencoderKL.from_pretrained(base.folder.path, subfolder="vae", torch_dtype=torch.float32).eval()
    exact, quick = (torch.cat([vae.decode(z, return_dict=False)[0].clamp(-1, 1) for z in made]) for made in latents)
    print(f"  decoded again they differ by {-10 * ((exact - quick) / 2).square().mean().log10():.1f} dB")


@torch.no_grad()
def rounding(base: Base, px: int) -> None:
    exact, fused = (stock(base.folder.path, dtype) for dtype in (torch.float32, HALF))
    latents = Blueprint(base.folder.configs).latents(4, (px, px))
    torch.manual_seed(0)
    x, text = (torch.randn(shape) for shape in (latents.shape, (4, *base.text_shape)))
    for at in (100, 500, 900):
        times = torch.full((4,), at)
        wanted = base.denoise(exact, x, times, text)
        off = [
            float((base.denoise(n, x.to(HALF), times, text.to(HALF)).float() - wanted).norm() / wanted.norm())
            for n in (fused, base.denoiser(CPU, HALF))
        ]
        print(f"a prediction at time {at} in bfloat16 is off by {100 * off[0]:.2f} % fused, {100 * off[1]:.2f} % plain")


def checkpointing(base: Base, px: int) -> None:
    job = graph.Job(HALF, 4, 8, base.targets, (px, px), px, 1, True, 2)
    for on in (False, True):
        step = graph.measure(Blueprint(base.folder.configs), replace(job, checkpointing=on)).step
        print(
            f"a step of 4 × {px} px, checkpointing {on}: {step.peak_bytes / 1e9:.2f} GB, {step.flops / 1e9:.0f} GFLOP"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base", type=Path, default=bundled_base())
    parser.add_argument("--px", type=int)
    args = parser.parse_args()
    base = bases.open_base(args.base)
    px = args.px or base.resolution_px
    loading(base)
    encoding(base, px)
    rounding(base, px)
    checkpointing(base, px)


if __name__ == "__main__":
    main()
