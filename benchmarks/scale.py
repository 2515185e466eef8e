"""What a step costs as the work grows: with the number of pictures (nothing), the batch and the pixels (in proportion).

    python -m benchmarks.scale                                # prints the tables of docs/performance.md
    python -m benchmarks.scale --sizes 10 10000 --runs 3      # smaller

The first table puts N synthetic entries into a cache of their own (hard links to a few files, so that a million fit
on any disk), opens them as a run does and takes steps' batches out of them: who is seen, latents and texts put
together. One process a size, so that memory is that size's own. The second takes real steps of the bundled base.
"""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil
import torch

from benchmarks.step_time import as_trained, inputs, network
from deltaw import device as devices
from deltaw import inject
from deltaw.data import feed
from deltaw.data.cache import Cache, Entries, key
from deltaw.families import kernels, sd
from deltaw.training.sampler import Sampler

LATENT, TEXT = (4, 64, 64), (77, 768)
"""Of a picture of 512 px and a caption of Stable Diffusion 1.5."""
FILES = 64
BATCH = 4


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=int, nargs="*", default=[10, 10_000, 1_000_000])
    parser.add_argument("--batches", type=int, nargs="*", default=[1, 2, 4, 8, 16])
    parser.add_argument("--px", type=int, nargs="*", default=[64, 128, 256])
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--one", type=int, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one:
        dataset(args.one)
        return
    print(f"load of this machine at the start: {psutil.getloadavg()[0]:.1f} on {psutil.cpu_count()} cores")
    print("| pictures | opening the cache | a batch of 4 | memory beyond the libraries |\n| --- | --- | --- | --- |")
    for n in args.sizes:
        subprocess.run([sys.executable, "-m", "benchmarks.scale", "--one", str(n)], check=True)
    work(args.batches, args.px, args.runs)


def dataset(n: int) -> None:
    """One row: N cached pictures, each with a caption of its own."""
    folder = Path(tempfile.mkdtemp(prefix="deltaw-scale-"))
    try:
        row(n, Cache(folder))
    finally:
        shutil.rmtree(folder)


def row(n: int, cache: Cache) -> None:
    """Fills the cache, opens it, and times batches from a cold and shuffled order."""
    names = {"latent": LATENT, "embedding": TEXT}
    keys = {name: [key(name, str(i)) for i in range(n)] for name in names}
    for name, shape in names.items():
        for i, entry in enumerate(keys[name]):
            if i < FILES:
                cache.put(entry, {name: torch.randn(shape)})
            else:
                target = cache.root / entry[:2] / entry[2:]
                target.parent.mkdir(exist_ok=True)
                os.link(cache.root / keys[name][i % FILES][:2] / keys[name][i % FILES][2:], target)
    before = psutil.Process().memory_info().rss
    start = time.perf_counter()
    latents, texts = (Entries(cache, keys[name], name, feed.HELD_BYTES) for name in names)
    assert not latents.check()
    assert not texts.check()
    opened = time.perf_counter() - start
    sampler = Sampler({(512, 512): range(n)}, BATCH, seed=0)
    seconds = []
    for turn in range(201):
        start = time.perf_counter()
        chosen = sampler.pictures((512, 512), turn)
        torch.stack([latents[i] for i in chosen])
        torch.stack([texts[i] for i in chosen])
        seconds.append(time.perf_counter() - start)
    grown = psutil.Process().memory_info().rss - before
    middle = statistics.median(seconds[1:])
    print(f"| {n:,} | {opened:.1f} s | {1e3 * middle:.2f} ms | {grown / 1e6:,.0f} MB |", flush=True)


def work(batches: list[int], sides_px: list[int], runs: int) -> None:
    """Seconds of a step by batch and by pixels, and what that is per picture and per pixel of the smallest."""
    device, _ = devices.choose()
    dtype, _ = devices.compute_dtype(device)
    model = network("bundled", device, dtype)
    kernels.speed_up(model, device, dtype)
    wrapped = inject.wrap(model, sd.StableDiffusion.targets, 8, 8.0, torch.Generator().manual_seed(0))
    print("\n| batch × side | a step | per 128 × 128 px |\n| --- | --- | --- |")
    jobs = [(batch, 128) for batch in batches] + [(BATCH, px) for px in sides_px if px != 128]
    for batch, px in jobs:
        step = as_trained(model, wrapped, inputs(model.config, px, batch, device, dtype), device, dtype)
        seconds = []
        for _ in range(runs + 1):
            start = time.perf_counter()
            step()
            seconds.append(time.perf_counter() - start)
        middle = statistics.median(seconds[1:])
        print(f"| {batch} × {px} px | {middle:.3f} s | {1e3 * middle / batch / (px / 128) ** 2:.0f} ms |", flush=True)


if __name__ == "__main__":
    main()
