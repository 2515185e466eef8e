"""How long a folder of photographs takes to be looked at and encoded: at first, and when it is known.

    python -m benchmarks.photographs                          # prints the table of docs/performance.md
    python -m benchmarks.photographs --sizes 4000x3000 --n 40 --px 512
    python -m benchmarks.photographs --make FOLDER --sizes 128x128 --n 10000    # a folder for `deltaw train`

Synthetic JPEGs of noise and gradients, in a folder and with a cache of their own. Rows: with one thread and as many as a run takes.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import psutil
import torch
from PIL import Image

from deltaw import device as devices
from deltaw import digests, zoo
from deltaw.data import feed, folder, looks, reading
from deltaw.data.cache import Cache
from deltaw.events import silent
from deltaw.families import bases

CPU = torch.device("cpu")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", nargs="*", default=["4000x3000", "1152x896"], metavar="WxH")
    parser.add_argument("--n", type=int, default=100, help="photographs of each size")
    parser.add_argument("--px", type=int, nargs="*", default=[128, 512], help="side of what is encoded")
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument(
        "--make", type=Path, metavar="FOLDER", help="only write the photographs of the first size, each with a caption"
    )
    args = parser.parse_args()
    if args.make:
        make(args.make, args.n, *map(int, args.sizes[0].split("x")))
        return
    print(f"load of this machine at the start: {psutil.getloadavg()[0]:.1f} on {psutil.cpu_count()} cores")
    heads = ["scan, first", "scan, again", "looks, first", "looks, again", *(f"encode at {px} px" for px in args.px)]
    print("| photographs, threads | " + " | ".join(heads) + " |\n|" + " --- |" * (len(heads) + 1))
    most = reading.MAX_THREADS
    for size in args.sizes:
        with tempfile.TemporaryDirectory(prefix="deltaw-photographs-") as scratch:
            found = Path(scratch) / "pictures"
            make(found, args.n, *map(int, size.split("x")))
            digests.SETTLED_S = 0.0  # they are younger than what is remembered otherwise
            for n_threads in (1, min(most, os.cpu_count() or 1)):
                reading.MAX_THREADS = n_threads
                row(f"{args.n} of {size}, {n_threads}", found, args.px, args.runs)


def make(target: Path, n: int, width: int, height: int) -> None:
    """Writes JPEGs that take about as long to decode as a camera's, each with a caption of its own."""
    target.mkdir()
    draw = np.random.default_rng(0)
    for i in range(n):
        coarse = Image.fromarray(draw.integers(0, 255, (-(-height // 64), -(-width // 64), 3), np.uint8)).resize(
            (width, height)
        )
        grain = Image.fromarray(draw.integers(0, 255, (256, 256, 3), np.uint8)).resize((width, height))
        Image.blend(coarse, grain, 0.2).save(target / f"{i:04}.jpg", quality=92)
        (target / f"{i:04}.txt").write_text(f"thing number {i}", "utf-8")


def row(name: str, found: Path, sides_px: list[int], n_runs: int) -> None:
    """Prints milliseconds a photograph, medians of several runs."""
    base = bases.open_base(zoo.bundled_base())
    dataset = folder.scan(found)
    pictures = dataset.pictures

    def encode(px: int) -> None:
        with tempfile.TemporaryDirectory() as scratch:
            sizes, captions = [(px, px)] * len(pictures), [""] * len(pictures)
            feed.fill(base, pictures, sizes, captions, CPU, Cache(scratch), silent, dtype=devices.compute_dtype(CPU)[0])

    def look() -> None:
        list(looks.look_at(dataset))

    def scan() -> None:
        folder.scan(found)

    def first(work: Callable[[], None]) -> None:
        with tempfile.TemporaryDirectory() as scratch:
            os.environ["DELTAW_CACHE"] = scratch
            work()

    def timed(work: Callable[[], object]) -> float:
        begin = time.perf_counter()
        work()
        return (time.perf_counter() - begin) / len(pictures) * 1e3

    figures = []
    with tempfile.TemporaryDirectory() as known:
        for work in (scan, look):
            figures.append([timed(lambda work=work: first(work)) for _ in range(n_runs)])
            os.environ["DELTAW_CACHE"] = known
            work()
            figures.append([timed(work) for _ in range(n_runs)])
        figures += [[timed(lambda px=px: encode(px)) for _ in range(n_runs)] for px in sides_px]
    print(f"| {name} | " + " | ".join(f"{statistics.median(all_of):.3g} ms" for all_of in figures) + " |", flush=True)


if __name__ == "__main__":
    main()
