"""DeltaW with its defaults beside the plain peft loop: time, and loss on pictures kept from both.

    python -m benchmarks.quality [--styles inkline streamline] [--set key=value ...]

Both train on `examples/STYLE` on the bundled base, one after the other in processes of their own;
`benchmarks/held_out/STYLE` (48 other pictures) judges. Whole-process seconds include everything that
each of the two does (DeltaW also evaluates, proves, draws and reports).
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.held_out import HERE, compare
from deltaw.families import bases
from deltaw.zoo import bundled_base


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--styles", nargs="+", default=["inkline", "streamline"])
    parser.add_argument("--set", nargs="*", default=[], dest="settings")
    args = parser.parse_args()
    base = bases.open_base(bundled_base())
    for style in args.styles:
        with tempfile.TemporaryDirectory() as scratch:
            rows = run(style, Path(scratch), args.settings)
            scores = compare(base, HERE / "held_out" / style, [file for _, _, _, file in rows])
            for (name, whole_s, train_s, _), score in zip(rows, scores, strict=True):
                print(f"{style:12} {name:12} whole {whole_s:6.1f} s  training {train_s:6.1f} s  held-out loss "
                      f"{100 * score.change.mean:+.2f} % ({100 * score.change.low:+.2f} to {100 * score.change.high:+.2f}), "
                      f"{score.n_better} of {score.n} better")  # fmt: skip


def run(style: str, scratch: Path, settings: list[str]) -> list[tuple[str, float, float, Path]]:
    """(name, whole seconds, training seconds, file) of both contenders."""
    pictures, file = HERE.parent / "examples" / style, scratch / "peft.safetensors"
    environment = {**os.environ, "DELTAW_CACHE": str(scratch / "cache"), "GOMP_SPINCOUNT": "10000"}
    start = time.perf_counter()
    said = subprocess.run([sys.executable, "-m", "benchmarks.plain_peft", pictures, file], check=True, env=environment,
                          capture_output=True, text=True).stdout  # fmt: skip
    peft = ("plain peft", time.perf_counter() - start, float(said.split()[-2]), file)
    out = scratch / "run"
    words = [word for setting in settings for word in ("--set", setting)]
    command = [sys.executable, "-c", "from deltaw.cli import main; main()", "train", pictures, "--out", out, *words]
    start = time.perf_counter()
    subprocess.run(command, check=True, env=environment, stdout=subprocess.DEVNULL)
    whole = time.perf_counter() - start
    steps = [e for e in map(json.loads, (out / "events.jsonl").read_text().splitlines()) if e["event"] == "step"]
    return [peft, ("DeltaW", whole, steps[-1]["step"] / steps[-1]["steps_per_s"], out / f"{style}.safetensors")]


if __name__ == "__main__":
    main()
