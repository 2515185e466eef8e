"""How right the forecast of a run is: predicted and used memory, foretold and spent time, on real runs.

    python -m benchmarks.prediction                     # the bundled base: batch 1, 4, 16; 64, 128, 256 px
    python -m benchmarks.prediction --base sd15 --px 256 512 --batch 1
    python -m benchmarks.prediction --base sdxl --px 512 --batch 1    # half an hour, 12 GB of memory

Every run is a process of its own with an empty cache. sd15 and sdxl are Stable Diffusion 1.5's and XL's shapes with
random weights, made in a temporary folder (2 and 7 GB). Time is foretold after the first steps.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from benchmarks.peers import random_bases
from deltaw.events import Event, Table
from deltaw.training import run
from deltaw.zoo import bundled_base

PICTURES = Path(__file__).parents[1] / "examples" / "inkline"


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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base", default="bundled", help="bundled, sd15, sdxl or a folder")
    parser.add_argument("--px", type=int, nargs="+", default=[64, 128, 256])
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 4, 16])
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--pictures", default=str(PICTURES))
    parser.add_argument("--one", action="store_true", help="one run in this process")
    args = parser.parse_args()
    if args.one:
        measure(args.base, args.pictures, args.px[0], args.batch[0], args.steps)
        return
    with tempfile.TemporaryDirectory() as folder:
        base = {"bundled": str(bundled_base())}.get(args.base, args.base)
        if args.base in random_bases.SHAPES:
            base = str(random_bases.base_of(args.base, Path(folder) / args.base))
        for px in args.px:
            for batch in args.batch:
                command = [sys.executable, "-m", "benchmarks.prediction", "--one", "--base", base, "--px", str(px)]
                command += ["--batch", str(batch), "--steps", str(args.steps), "--pictures", args.pictures]
                output = subprocess.run(command, capture_output=True, text=True, check=True).stdout
                found = json.loads(output.splitlines()[-1])
                for name in ("peak memory, predicted", "time, foretold after the first steps"):
                    print(f"{args.base} {px} px batch {batch:2}  {name.split(',')[0]:12} {found.get(name)}", flush=True)


if __name__ == "__main__":
    main()
