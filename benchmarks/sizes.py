"""Training steps of pictures of many sizes, with as many compiled kernels kept as oneDNN keeps by itself, and with all.

    python -m benchmarks.sizes [--base bundled|sd15] [--px 256 384 576] [--batch 1] [--steps 60] [--runs 2]

A step's size is drawn from all that pictures of any aspect ratio are seen at, `--px`² pixels at most. Each measurement is a process of its own, the two
settings taking turns. Printed are steps a second after one of each size, and the process's memory.
"""

from __future__ import annotations

import argparse
import os
import random
import subprocess
import sys
import time
from typing import Any

import torch
from torch import Tensor

from benchmarks.step_time import inputs, loop_steps, network
from deltaw import device as devices
from deltaw import inject
from deltaw.data import buckets
from deltaw.families import bases, kernels, sd
from deltaw.training.stepping import Batch
from deltaw.zoo import bundled_base

VARIABLE, KEPT = devices.KERNELS_KEPT
SETTINGS = {"as oneDNN does": "1024", "kept": KEPT}


def measure(base: str, px: int, batch: int, n_steps: int) -> str:
    """In this process: a step of every size, then steps of sizes drawn at random."""
    device, _ = devices.choose()
    dtype, _ = devices.compute_dtype(device)
    model = network(base, device, dtype)
    kernels.speed_up(model, device, dtype)
    targets = bases.open_base(bundled_base()).targets if base == "bundled" else sd.StableDiffusion.targets
    wrapped = inject.wrap(model, targets, 8, 8.0, torch.Generator().manual_seed(0))

    def denoise(network: Any, x: Tensor, times: Tensor, text: Tensor) -> Tensor:
        return network(x, times, text, return_dict=False)[0]  # type: ignore[no-any-return]

    compute = loop_steps(model, wrapped, denoise, device, dtype)
    text = inputs(model.config, px, batch, device, dtype)["encoder_hidden_states"]
    ones, sizes = torch.ones(batch), buckets.ladder(px)

    def step(size: tuple[int, int]) -> None:
        x = torch.randn(batch, model.config.in_channels, size[1] // 8, size[0] // 8)
        compute(Batch(x, ones, text, torch.zeros(x.shape), ones))

    for size in sizes:
        step(size)
    drawn = random.Random(0).choices(sizes, k=n_steps)
    start = time.perf_counter()
    for size in drawn:
        step(size)
    per_s = n_steps / (time.perf_counter() - start)
    return f"{len(sizes)} sizes: {per_s:.2f} steps/s, {devices.peak_rss_bytes() / 1e9:.2f} GB"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base", choices=("bundled", "sd15"), default="bundled")
    parser.add_argument("--px", type=int, nargs="+", default=[256, 384, 576])
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--runs", type=int, default=2)
    parser.add_argument("--one", action="store_true", help="one measurement in this process")
    args = parser.parse_args()
    if args.one:
        print(measure(args.base, args.px[0], args.batch, args.steps))
        return
    for px in args.px:
        for _ in range(args.runs):
            for name, kept in SETTINGS.items():
                command = [sys.executable, "-m", "benchmarks.sizes", "--one", "--base", args.base, "--px", str(px)]
                command += ["--batch", str(args.batch), "--steps", str(args.steps)]
                output = subprocess.run(
                    command, env={**os.environ, VARIABLE: kept}, capture_output=True, text=True, check=True
                )
                print(
                    f"{args.base}, {px} px, batch {args.batch}, {name:14} {output.stdout.splitlines()[-1]}", flush=True
                )


if __name__ == "__main__":
    main()
