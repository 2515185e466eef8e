"""Seconds to the first step, seconds a step and memory of whole trainers, alternating, each run its own process.

    python -m benchmarks.peers.run --job bundled --batch 4 16 \\
        --diffusers-script PATH/train_text_to_image_lora.py --diffusers-python PATH/bin/python
    python -m benchmarks.peers.run --job sd15 --px 256 --scratch FOLDER \\
        --kohya PATH/sd-scripts --kohya-python PATH/bin/python
    python -m benchmarks.peers.run --job sdxl --scratch FOLDER --diffusers-script PATH/train_text_to_image_lora_sdxl.py …
    python -m benchmarks.peers.run --job flux1 --scratch FOLDER    # on a GPU of 80 GB

Same base, pictures (`examples/streamline`), batch, size in pixels, rank and precision (bfloat16) for all; diffusers' script also in
float32, which is what it computes in where it is not told otherwise. All compute on the GPU where there is one. DeltaW and plain peft always run; the others where they are
given: their scripts are not part of this repository. First step: from the start of the process to
the end of its first optimizer step; DeltaW once with an empty cache and then with a warm one. A step: median over
the run's later steps. Memory: the largest resident set up to the last step, or what was taken of the GPU.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from benchmarks.peers import jobs, random_bases, trainers
from benchmarks.peers.jobs import Job
from benchmarks.peers.trainers import ROOT, Start
from deltaw.zoo import bundled_base

PX = {"bundled": 128, "sd15": 256, "sdxl": 512, "flux1": 512}
"""A job's pictures where nothing else is said."""
SETTLE = 2
"""Steps at the start that do not count: threads start, memory is asked for."""


@dataclass(frozen=True)
class Seen:
    """One run: seconds to the first step, median seconds of the later ones, largest memory."""

    first_s: float
    step_s: float
    peak_bytes: int


def watched(start: Start, scratch: Path, n_steps: int) -> Seen:
    """Runs a trainer under the watcher until its last step; what comes after is not measured.

    Raises:
        RuntimeError: it failed; its last words are in the message.
    """
    log = scratch / "steps.jsonl"
    began = time.monotonic()
    done = subprocess.run(start.command(log), cwd=start.cwd, env={**trainers.environment(scratch / "cache"), "WATCHED_STEPS": str(n_steps)},
                          capture_output=True, text=True, check=False)  # fmt: skip
    if done.returncode:
        raise RuntimeError(f"{start.script.name} failed:\n{done.stdout[-1500:]}\n{done.stderr[-3000:]}")
    steps = [json.loads(line) for line in log.read_text("utf-8").splitlines()]
    at = [s["at_s"] for s in steps]
    gaps = [b - a for a, b in zip(at[SETTLE:], at[SETTLE + 1 :], strict=False)]
    return Seen(at[0] - began, statistics.median(gaps), steps[-1]["peak_bytes"])


def contenders(args: argparse.Namespace, job: Job) -> dict[str, Callable[[Path], Start]]:
    """Every trainer that was given, by name."""
    found: dict[str, Callable[[Path], Start]] = {
        "DeltaW": lambda out: trainers.deltaw(sys.executable, job, out / "run", args.set),
        "plain peft": lambda out: trainers.plain_peft(sys.executable, job, out),
    }
    for name, extra in (("diffusers script", []), ("diffusers script, float32", ["--mixed_precision", "no"])):
        if args.diffusers_script and args.job != "flux1":
            found[name] = lambda out, extra=extra: trainers.diffusers_script(
                args.diffusers_python, args.diffusers_script.resolve(), job, out / "diffusers", extra
            )
    if args.kohya and args.job == "sd15":
        found["kohya sd-scripts"] = lambda out: trainers.kohya(
            args.kohya_python, args.kohya.resolve(), job, out / "kohya"
        )
    return {name: start for name, start in found.items() if name == "DeltaW" or not args.only or name in args.only}


def race(starts: Mapping[str, Callable[[Path], Start]], runs: int, n_steps: int) -> dict[str, list[Seen]]:
    """Each contender `runs` times, taking turns; caches live on between the runs of one contender."""
    seen: dict[str, list[Seen]] = {name: [] for name in starts}
    with tempfile.TemporaryDirectory() as caches:
        for i in range(runs):
            for name, start in starts.items():
                own = Path(caches) / name.replace(" ", "_")
                own.mkdir(exist_ok=True)
                with tempfile.TemporaryDirectory() as out:
                    seen[name].append(watched(start(Path(out)), own, n_steps))
                print(f"# run {i + 1} {name}: {seen[name][-1]}", file=sys.stderr, flush=True)
    return seen


def table(job: Job, name: str, seen: Mapping[str, list[Seen]]) -> str:
    """Markdown rows; ratios are DeltaW's figure over the contender's."""
    ours = statistics.median(s.step_s for s in seen["DeltaW"])
    memory = statistics.median(s.peak_bytes for s in seen["DeltaW"])
    lines = []
    for trainer, runs in seen.items():
        steps, peaks = [s.step_s for s in runs], [s.peak_bytes for s in runs]
        step, peak = statistics.median(steps), statistics.median(peaks)
        later = [s.first_s for s in runs[1:]] or [runs[0].first_s]
        lines.append(
            f"| {name}, {job.px} px, batch {job.batch} | {trainer} | {runs[0].first_s:.1f} s | {statistics.median(later):.1f} s "
            f"| {step:.3f} s ({min(steps):.3f} to {max(steps):.3f}) | {ours / step:.2f} | {peak / 1e9:.2f} GB | {memory / peak:.2f} |"
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--job", choices=("bundled", *random_bases.SHAPES), default="bundled")
    parser.add_argument("--px", type=int)
    parser.add_argument("--batch", type=int, nargs="+")
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--scratch", type=Path, default=Path("runs/peers"), help="where a made base is kept")
    parser.add_argument("--diffusers-script", type=Path)
    parser.add_argument("--diffusers-python", default=sys.executable)
    parser.add_argument("--set", nargs="+", default=[], metavar="KEY=VALUE", help="settings of DeltaW beside the job's")
    parser.add_argument("--only", nargs="+", help="names of the contenders, if not all")
    parser.add_argument("--kohya", type=Path)
    parser.add_argument("--kohya-python", default=sys.executable)
    args = parser.parse_args()
    base = (
        bundled_base() if args.job == "bundled" else random_bases.base_of(args.job, args.scratch.resolve() / args.job)
    )
    print("| job | trainer | first step, cold | warm | a step | DeltaW ÷ it | memory | DeltaW ÷ it |")
    print("| --- | --- | --- | --- | --- | --- | --- | --- |")
    for batch in args.batch or ([4, 16] if args.job == "bundled" else [1]):
        with tempfile.TemporaryDirectory() as scratch:
            px = args.px or PX[args.job]
            pictures = jobs.prepare(ROOT / "examples" / "streamline", Path(scratch), px)
            job = Job(base, pictures, px, batch, args.steps)
            print(table(job, args.job, race(contenders(args, job), args.runs, args.steps)), flush=True)


if __name__ == "__main__":
    main()
