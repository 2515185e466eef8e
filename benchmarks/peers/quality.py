"""Time to quality: when DeltaW reaches the held-out loss that a peer reaches with its own documented defaults.

    python -m benchmarks.peers.quality --diffusers-script PATH/train_text_to_image_lora.py --diffusers-python PATH/bin/python

The peer is started as its own documentation says (batch 1, rate 1e-4, constant, random flips, rank 4, 100 epochs), but at the
base's resolution, in bfloat16, and saving every `--every` steps, so that its way can be seen; it is stopped after `--minutes`.
DeltaW is started with nothing but the folder. All snapshots answer the same questions about 48 pictures of the style that
neither has seen (`benchmarks/held_out`). Seconds count from the start of each process to the time its snapshot was written.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from benchmarks.held_out import HERE, compare
from benchmarks.peers import jobs, trainers
from benchmarks.peers.jobs import Job
from benchmarks.peers.trainers import ROOT, Start
from deltaw.families import bases
from deltaw.families.base import Base
from deltaw.zoo import bundled_base

DOCUMENTED = ("--learning_rate", "1e-4", "--lr_scheduler", "constant", "--lr_warmup_steps", "0", "--random_flip")
EPOCHS = 100


@dataclass(frozen=True)
class Snapshot:
    """A file, the seconds from the start of its process to its writing, and its held-out loss against the base's."""

    file: Path
    at_s: float
    change: float = 0.0


def run(start: Start, scratch: Path, minutes: float) -> float:
    """Runs a trainer for at most so long; gives the time of day at which it began.

    Raises:
        RuntimeError: it failed by itself.
    """
    began = time.time()
    with (scratch / "said.txt").open("w") as said:
        process = subprocess.Popen(start.command(scratch / "steps.jsonl"), cwd=start.cwd,
                                   env=trainers.environment(scratch / "cache"), stdout=said, stderr=said)  # fmt: skip
        try:
            code = process.wait(timeout=60 * minutes)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            return began
    if code:
        raise RuntimeError(f"{start.script.name} failed:\n{(scratch / 'said.txt').read_text()[-3000:]}")
    return began


def judged(base: Base, style: str, files: Sequence[Path], began: float) -> list[Snapshot]:
    """The snapshots of one run in the order of their writing, each with its held-out loss."""
    found = sorted((Snapshot(f, f.stat().st_mtime - began) for f in files), key=lambda s: s.at_s)
    scores = compare(base, HERE / "held_out" / style, [s.file for s in found])
    return [replace(snapshot, change=score.change.mean) for snapshot, score in zip(found, scores, strict=True)]


def first_at_least(snapshots: Sequence[Snapshot], change: float) -> Snapshot | None:
    """The earliest snapshot whose loss is at most `change`."""
    return next((s for s in snapshots if s.change <= change), None)


def of_style(style: str, args: argparse.Namespace, scratch: Path) -> list[str]:
    """Lines of the report."""
    base = bases.open_base(bundled_base())
    pictures = jobs.prepare(ROOT / "examples" / style, scratch, base.resolution_px)
    n_pictures = len(list((ROOT / "examples" / style).glob("*.png")))
    job = Job(bundled_base(), pictures, base.resolution_px, 1, EPOCHS * n_pictures, rank=4)
    peer_out, our_out = scratch / "peer", scratch / "ours"
    peer = trainers.diffusers_script(args.diffusers_python, args.diffusers_script.resolve(), job, peer_out,
                                     [*DOCUMENTED, "--checkpointing_steps", str(args.every)])  # fmt: skip
    began = run(peer, scratch, args.minutes)
    theirs = judged(base, style, list(peer_out.glob("checkpoint-*/pytorch_lora_weights.safetensors")), began)
    words = ["train", str(pictures), "--out", str(our_out), "--set", f"snapshots={args.snapshots}"]
    began = run(
        Start(sys.executable, ROOT / "benchmarks" / "peers" / "deltaw_command.py", words), scratch, args.minutes
    )
    ours = judged(base, style, list((our_out / "snapshots").glob("*.safetensors")), began)
    lines = [f"{style}: {name:16} {s.at_s:6.1f} s  {100 * s.change:+.2f} %  {s.file.parent.name}/{s.file.name}"
             for name, runs in (("diffusers script", theirs), ("DeltaW", ours)) for s in runs]  # fmt: skip
    best = min(theirs, key=lambda s: s.change)
    reached = first_at_least(ours, best.change)
    verdict = (f"after {reached.at_s:.1f} s, {reached.at_s / best.at_s:.2f} of its time" if reached else "not within its run")  # fmt: skip
    return [*lines, f"{style}: the script's best {100 * best.change:+.2f} % came after {best.at_s:.1f} s; DeltaW was there {verdict}"]  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--styles", nargs="+", default=["inkline", "streamline"])
    parser.add_argument("--diffusers-script", type=Path, required=True)
    parser.add_argument("--diffusers-python", default=sys.executable)
    parser.add_argument("--minutes", type=float, default=15)
    parser.add_argument("--every", type=int, default=100, help="steps between the peer's checkpoints")
    parser.add_argument("--snapshots", type=int, default=5)
    args = parser.parse_args()
    for style in args.styles:
        with tempfile.TemporaryDirectory() as scratch:
            print("\n".join(of_style(style, args, Path(scratch))), flush=True)


if __name__ == "__main__":
    main()
