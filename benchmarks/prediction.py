"""How right the forecast of a run is: predicted and used memory, foretold and spent time, on real runs.

    python -m benchmarks.prediction                     # the bundled base: batch 1, 4, 16; 64, 128, 256 px
    python -m benchmarks.prediction --base sd15 --px 256 512 --batch 1
    python -m benchmarks.prediction --base sdxl --px 1024 --batch 1   # on the meta device alone: predicted, not run
    python -m benchmarks.prediction --base sdxl --px 512 --batch 1 --step   # real steps of the network alone, on the CPU

Every run is a process of its own with an empty cache. sd15 is Stable Diffusion 1.5's shapes with random
weights, made in a temporary folder (2 GB). Time is foretold after the first five steps.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from torch.utils._pytree import tree_map

from deltaw import device as devices
from deltaw import inject
from deltaw.events import Event, Table
from deltaw.families.blueprint import Blueprint
from deltaw.families.networks import VARIANTS
from deltaw.training import graph, memory, optim, run
from deltaw.zoo import bundled_base

PICTURES = Path(__file__).parents[1] / "examples" / "inkline"
VAE = {
    "block_out_channels": (128, 256, 512, 512), "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4, "layers_per_block": 2, "latent_channels": 4,
}  # fmt: skip


def make_sd15(path: Path) -> Path:
    """A diffusers folder of Stable Diffusion 1.5's shapes, random weights in float16."""
    from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel

    torch.manual_seed(0)
    torch.set_default_dtype(torch.float16)
    unet, text = VARIANTS["sd1"]["unet"][1], VARIANTS["sd1"]["text_encoder"][1]
    UNet2DConditionModel(sample_size=64, **unet).save_pretrained(path / "unet")
    AutoencoderKL(**VAE, sample_size=512).save_pretrained(path / "vae")
    CLIPTextModel(CLIPTextConfig(**text)).save_pretrained(path / "text_encoder")
    torch.set_default_dtype(torch.float32)
    DDIMScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", clip_sample=False, steps_offset=1
    ).save_pretrained(path / "scheduler")
    shutil.copytree(bundled_base() / "tokenizer", path / "tokenizer")
    shutil.copy(bundled_base() / "model_index.json", path)
    return path


def measure(base: str, pictures: str, px: int, batch: int, steps: int) -> None:
    """One run in this process; prints its table of costs as JSON."""
    found: dict[str, str] = {}

    def tell(event: Event) -> None:
        if isinstance(event, Table) and event.title == "cost":
            found.update({row[0]: row[1] for row in event.rows})

    settings = ['prompts=["a cat", "a house"]', "sample_steps=4", "snapshots=2", "held_out=2"]
    with tempfile.TemporaryDirectory() as folder:
        os.environ["DELTAW_CACHE"] = f"{folder}/cache"
        run.train(pictures, base=base, out=f"{folder}/run", resolution=px, batch=batch, steps=steps, settings=settings,
                  tell=tell)  # fmt: skip
    print(json.dumps(found))


def sdxl(px: int, batch: int) -> tuple[Blueprint, graph.Job]:
    """Stable Diffusion XL's shapes, and a job on them: bfloat16, rank 16 on Q, K, V and O."""
    config = {"in_channels": 4, **VARIANTS["sdxl"]["unet"][1]}
    vae, text = {**VAE, "sample_size": 1024}, VARIANTS["sdxl"]["text_encoder"][1]
    job = graph.Job(torch.bfloat16, batch, 16, r"attn[12]\.to_(q|k|v|out\.0)$", (px, px), px, 2, True, 2)
    return Blueprint({"unet": config, "vae": vae, "text_encoder": text}), job


def foretell_sdxl(px: int, batch: int) -> tuple[memory.Need, ...]:
    """What each phase of such a run needs, beyond the program."""
    blueprint, job = sdxl(px, batch)
    made = graph.measure(blueprint, job)
    return memory.needs(made, job, "adamw", 0, {"unet": made.unet_bytes, "vae": 0, "text_encoder": 0})


def show_sdxl(px: int, batch: int) -> None:
    """Prints what is foretold."""
    for need in foretell_sdxl(px, batch):
        print(f"sdxl {px} px batch {batch:2}  {need.phase:16} {need.n_bytes / 1e9:6.2f} GB  {need.reason}")


def step_sdxl(px: int, batch: int) -> None:
    """Trains the network alone for two steps, weights all alike, and prints predicted and used memory."""
    [need] = [need for need in foretell_sdxl(px, batch) if need.phase == "train"]
    predicted = devices.rss_bytes() + memory.LIBRARIES_BYTES + need.n_bytes
    blueprint, job = sdxl(px, batch)
    unet = blueprint.denoiser(job.dtype).to_empty(device="cpu")
    for parameter in unet.parameters():
        parameter.data.fill_(1e-3)
    wrapped = inject.wrap(unet, job.targets, job.rank, float(job.rank), torch.Generator().manual_seed(0))
    parameters = list(wrapped.parameters().values())
    optimizer = optim.adamw(parameters, 1e-4, 0.0)
    arguments = tree_map(_filled, blueprint.questions(batch, job.largest_px, job.dtype))
    for _ in range(2):
        start = time.perf_counter()
        unet(**arguments)[0].float().square().mean().backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        seconds = time.perf_counter() - start
    used = devices.peak_rss_bytes()
    print(f"sdxl {px} px batch {batch:2}  a step: predicted {predicted / 1e9:.2f} GB, used {used / 1e9:.2f} GB: "
          f"{100 * (used / predicted - 1):+.0f} %; it took {seconds:.0f} s")  # fmt: skip


def _filled(value: Any) -> Any:
    return torch.ones(value.shape, dtype=value.dtype) if isinstance(value, torch.Tensor) else value


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base", default="bundled", help="bundled, sd15, sdxl or a folder")
    parser.add_argument("--px", type=int, nargs="+", default=[64, 128, 256])
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 4, 16])
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--pictures", default=str(PICTURES))
    parser.add_argument("--step", action="store_true", help="sdxl: a real step of the network, 6 GB and more")
    parser.add_argument("--one", action="store_true", help="one run in this process")
    args = parser.parse_args()
    if args.one:
        measure(args.base, args.pictures, args.px[0], args.batch[0], args.steps)
        return
    with tempfile.TemporaryDirectory() as folder:
        base = {"bundled": str(bundled_base())}.get(args.base, args.base)
        if args.base == "sd15":
            base = str(make_sd15(Path(folder) / "sd15"))
        for px in args.px:
            for batch in args.batch:
                if args.base == "sdxl":
                    (step_sdxl if args.step else show_sdxl)(px, batch)
                    continue
                command = [sys.executable, "-m", "benchmarks.prediction", "--one", "--base", base, "--px", str(px)]
                command += ["--batch", str(batch), "--steps", str(args.steps), "--pictures", args.pictures]
                output = subprocess.run(command, capture_output=True, text=True, check=True).stdout
                found = json.loads(output.splitlines()[-1])
                for name in ("peak memory, predicted", "time, foretold after the first steps"):
                    print(f"{args.base} {px} px batch {batch:2}  {name.split(',')[0]:12} {found.get(name)}", flush=True)


if __name__ == "__main__":
    main()
