"""How far drawings are from the exact solution of their equation, by sampler and steps.

    python -m benchmarks.drawing [FILE.safetensors ...] [--base FOLDER] [--dtype bfloat16] [--sheet OUT.png]
    python -m benchmarks.drawing --pace 256 384 512 --base FOLDER

Eight prompts of the bundled base, seeds 0 to 7, without a LoRA and with each that is given; guidance as the base recommends. The exact solution
is DPM-Solver++ in 200 steps in float32. Distances: ‖z − z'‖ / ‖z'‖ of the latents, mean and largest of the eight, drawn in float32 unless asked otherwise.

Pace: seconds of a denoising step of four pictures of so many pixels that are drawn 4, 2 or 1 at a time, without their first steps; medians of two turns.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import torch
from torch import Tensor

from deltaw import formats, sheet
from deltaw.families import bases, solvers
from deltaw.families.base import Base
from deltaw.verbs.painter import Painter, Recipe
from deltaw.zoo import bundled_base

EXACT = 200
PACED, PACED_STEPS = (4, 2, 1), 4
ASKED = {solvers.OWN: (15, 25, 50), solvers.FAST: (8, 10, 12, 15, 20)}


def recipes(painter: Painter, prompts: Sequence[str]) -> list[Recipe]:
    """One a prompt; picture i has seed i."""
    side, guidance = painter.base.resolution_px, painter.default("guidance", painter.base.guidance)
    return [Recipe(p, "", i, 1, guidance, side, side) for i, p in enumerate(prompts)]


def distances(drawn: Tensor, exact: Tensor) -> Tensor:
    """Of n latents each: (n,)."""
    return (drawn - exact).flatten(1).norm(dim=1) / exact.flatten(1).norm(dim=1)


def pace(base: Base, px: int) -> dict[int, float]:
    """Pictures at a time to the seconds of a step of all four."""
    drawn = [
        Recipe(f"a cat {i}", "", i, PACED_STEPS, base.guidance, px, px, sampler=base.samplers[0])
        for i in range(max(PACED))
    ]
    painter = Painter(base, read=drawn)
    seconds: dict[int, list[float]] = {n: [] for n in PACED}
    for n in PACED * 2:
        at: list[float] = []
        painter.latents(drawn, [], lambda at=at: at.append(time.perf_counter()) or True, n)
        parts = [at[i : i + PACED_STEPS] for i in range(0, len(at), PACED_STEPS)]
        seconds[n].append(statistics.median(b - a for part in parts for a, b in pairwise(part)) * len(parts))
    return {n: statistics.median(s) for n, s in seconds.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="*", type=Path)
    parser.add_argument("--base", type=Path, default=bundled_base())
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--sheet", type=Path, help="all of them as one picture")
    parser.add_argument("--pace", type=int, nargs="+", metavar="PX", help="how long a step takes, and nothing else")
    args = parser.parse_args()
    base = bases.open_base(args.base)
    for px in args.pace or ():
        print(px, "px:", ", ".join(f"{n} at a time {s:.2f} s" for n, s in pace(base, px).items()))
    if args.pace:
        return
    prompts = bases.open_base(bundled_base()).folder.recommended["prompts"]["subjects"]
    painter, precise = Painter(base, "cpu", args.dtype), Painter(base, "cpu", "float32")
    shapes, rows = formats.shapes_of(args.base), {}
    print("| LoRA | sampler, steps | distance, mean | largest | seconds |\n| --- | --- | --- | --- | --- |")
    for file in (None, *args.files):
        name = file.stem if file else "none"
        deltas = [(formats.load(file, shapes=shapes)[0], 1.0)] if file else []
        plain = recipes(painter, prompts)
        exact = precise.latents([replace(r, steps=EXACT, sampler=solvers.FAST) for r in plain], deltas)
        rows[f"{name}, exact"] = exact
        for sampler, counts in ASKED.items():
            for steps in counts:
                start = time.perf_counter()
                drawn = painter.latents([replace(r, steps=steps, sampler=sampler) for r in plain], deltas)
                off, seconds = distances(drawn, exact), time.perf_counter() - start
                print(
                    f"| {name} | {sampler}, {steps} | {off.mean():.3f} | {off.max():.3f} | {seconds:.1f} |", flush=True
                )
                rows[f"{name}, {sampler} {steps}"] = drawn
    if args.sheet:
        sheet.write(sheet.grid([painter.decode(z) for z in rows.values()], list(rows), prompts), args.sheet)


if __name__ == "__main__":
    torch.set_grad_enabled(False)
    main()
