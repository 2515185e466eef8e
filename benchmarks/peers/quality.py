"""Time to quality: when DeltaW reaches the held-out loss that a peer reaches with its own documented defaults.

    python -m benchmarks.peers.quality [--diffusers-script PATH/train_text_to_image_lora.py --diffusers-python PATH/bin/python]

Peers are started as their own documentation says, but at the base's resolution, in bfloat16, and saving every `--every` steps, so
that their way can be seen; they are stopped after `--minutes`:

- diffusers' script: batch 1, rate 1e-4, constant, random flips, rank 4, 100 epochs;
- plain peft as its guide to Stable Diffusion starts it: batch 1, rate 1e-4, rank 16, alpha 27, 800 steps there, here as many as the time allows;
- plain peft as somebody would who knows the bundled base: batch 16, rate 1e-3, rank 8 (`benchmarks.quality`).

DeltaW is started with nothing but the folder. All snapshots answer the same questions about 48 pictures of the style that
none has seen (`benchmarks/held_out`). Seconds count from the start of each process to the time its snapshot was written.
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
ENDLESS = 1_000_000
"""Steps of a peer that runs until its time is up."""


@dataclass(frozen=True)
class Contender:
    """A trainer to be started, and where its snapshots will lie."""

    name: str
    start: Start
    out: Path
    snapshots: str

    def files(self) -> list[Path]:
        """The snapshots there are."""
        return list(self.out.glob(self.snapshots))


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


def peers(args: argparse.Namespace, pictures: Path, px: int, out: Path) -> list[Contender]:
    """Every peer that was given."""
    found = []
    if args.diffusers_script:
        n_pictures = len(list(pictures.glob("*.png")))
        job = Job(bundled_base(), pictures, px, 1, EPOCHS * n_pictures, rank=4)
        start = trainers.diffusers_script(args.diffusers_python, args.diffusers_script.resolve(), job, out / "diffusers",
                                          [*DOCUMENTED, "--checkpointing_steps", str(args.every)])  # fmt: skip
        found.append(Contender("diffusers' script", start, out / "diffusers", "checkpoint-*/pytorch_lora_weights.safetensors"))  # fmt: skip
    for name, batch, rank, every, words in (
        ("peft, its guide", 1, 16, args.every, ("--alpha", "27", "--lr", "1e-4")),
        ("peft, batch 16", 16, 8, max(args.every // 5, 1), ("--lr", "1e-3")),
    ):
        folder = out / name.replace(", ", "-").replace(" ", "-")
        folder.mkdir()
        job = Job(bundled_base(), pictures, px, batch, ENDLESS, rank)
        start = trainers.plain_peft(sys.executable, job, folder, [*words, "--every", str(every)])
        found.append(Contender(name, start, folder, "peft-*.safetensors"))
    return found


def ours(args: argparse.Namespace, pictures: Path, out: Path) -> Contender:
    """DeltaW with its defaults."""
    words = ["train", str(pictures), "--out", str(out), "--set", f"snapshots={args.snapshots}"]
    start = Start(sys.executable, ROOT / "benchmarks" / "peers" / "deltaw_command.py", words)
    return Contender("DeltaW", start, out, "snapshots/*.safetensors")


def verdict(style: str, peer: str, theirs: Sequence[Snapshot], own: Sequence[Snapshot]) -> str:
    """When DeltaW was where a peer was best."""
    best = min(theirs, key=lambda s: s.change)
    reached = first_at_least(own, best.change)
    when = (
        f"after {reached.at_s:.1f} s, {reached.at_s / best.at_s:.2f} of its time" if reached else "not within its run"
    )
    return f"{style}: {peer}'s best {100 * best.change:+.2f} % came after {best.at_s:.1f} s; DeltaW was there {when}"


def of_style(style: str, args: argparse.Namespace, scratch: Path) -> list[str]:
    """Lines of the report."""
    base = bases.open_base(bundled_base())
    pictures = jobs.prepare(ROOT / "examples" / style, scratch, base.resolution_px)
    ways: dict[str, list[Snapshot]] = {}
    for contender in (*peers(args, pictures, base.resolution_px, scratch), ours(args, pictures, scratch / "ours")):
        began = run(contender.start, scratch, args.minutes)
        files = contender.files()
        print(f"# {style}: {contender.name} wrote {len(files)} snapshots", file=sys.stderr, flush=True)
        ways[contender.name] = judged(base, style, files, began)
    own = ways.pop("DeltaW")
    lines = [f"{style}: {name:16} {s.at_s:6.1f} s  {100 * s.change:+.2f} %  {s.file.parent.name}/{s.file.name}"
             for name, way in (*ways.items(), ("DeltaW", own)) for s in way]  # fmt: skip
    return [*lines, *(verdict(style, name, way, own) for name, way in ways.items())]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--styles", nargs="+", default=["inkline", "streamline"])
    parser.add_argument("--diffusers-script", type=Path)
    parser.add_argument("--diffusers-python", default=sys.executable)
    parser.add_argument("--minutes", type=float, default=15)
    parser.add_argument("--every", type=int, default=100, help="steps between a peer's snapshots at batch 1")
    parser.add_argument("--snapshots", type=int, default=5)
    args = parser.parse_args()
    for style in args.styles:
        with tempfile.TemporaryDirectory() as scratch:
            print("\n".join(of_style(style, args, Path(scratch))), flush=True)


if __name__ == "__main__":
    main()
