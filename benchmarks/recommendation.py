"""Is the recommended snapshot the right one? Judged on pictures that no run saw.

    python -m benchmarks.recommendation [--styles inkline streamline] [--cases default overfit underrun]
    python -m benchmarks.recommendation --styles STYLE --run FOLDER     # a run that is there already

Three cases a style, all with the plan's own values: the example folder; four of its pictures for ten times their steps,
without a stop; the example folder for a ninth of its steps. `benchmarks/held_out/STYLE` (48 other pictures) gives the
true loss of every snapshot.
"""

from __future__ import annotations

import argparse
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path

import deltaw
from benchmarks.held_out import HERE, compare
from deltaw import tensorfile
from deltaw.families import bases
from deltaw.zoo import bundled_base

FOUR = ("alien", "cow_face", "french_fries", "trumpet")
CASES = {"default": None, "overfit": 600, "underrun": 15}
"""Case to its steps; None is the plan's."""


@dataclass(frozen=True)
class Found:
    """A run's snapshots and their true losses.

    Args:
        recommended: the step behind the file.
        true: step to held-out loss of its snapshot; `chosen` that of the file.
        base: that of the base.
        verdict: what the run said; "" for one that was there already.
        own: step to the change of the loss against the base on the run's own questions.
    """

    recommended: int
    true: dict[int, float]
    chosen: float
    base: float
    verdict: str
    own: dict[int, float]

    @property
    def behind(self) -> float:
        """How much higher the file's true loss is than the best snapshot's, as a share."""
        return self.chosen / min(self.true.values()) - 1


def run(style: str, case: str, out: Path) -> deltaw.Report:
    """Trains a case into `out / style`."""
    pictures = HERE.parent / "examples" / style
    if case == "overfit":
        four = out / "pictures" / style
        four.mkdir(parents=True)
        for name in FOUR:
            for file in pictures.glob(f"{name}.*"):
                shutil.copy(file, four)
        pictures = four
    settings = ("sample_steps=2", *(("stop=false", "snapshots=10") if case == "overfit" else ()))
    return deltaw.train(pictures, out=out / style, steps=CASES[case], settings=settings)


def judge(style: str, folder: Path, report: deltaw.Report | None = None) -> Found:
    """The true losses of a finished run's snapshots."""
    file = folder / f"{style}.safetensors"
    snapshots = sorted((folder / "snapshots").glob("*.safetensors"))
    *scores, chosen = compare(bases.open_base(bundled_base()), HERE / "held_out" / style, [*snapshots, file])
    true = {int(f.stem.rpartition("-")[2]): s.loss for f, s in zip(snapshots, scores, strict=True)}
    base = chosen.loss / (1 + chosen.change.mean)
    step = int(tensorfile.read_header(file).metadata["ss_steps"])
    own = {s.step: s.change.mean for s in report.scores} if report else {}
    return Found(step, true, chosen.loss, base, report.verdict if report else "", own)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--styles", nargs="+", default=["inkline", "streamline"])
    parser.add_argument("--cases", nargs="+", default=list(CASES), choices=CASES)
    parser.add_argument("--run", type=Path)
    args = parser.parse_args()
    for style in args.styles:
        for case in [str(args.run)] if args.run else args.cases:
            with tempfile.TemporaryDirectory() as scratch:
                report = None if args.run else run(style, case, Path(scratch))
                found = judge(style, args.run or Path(scratch) / style, report)
            print(f"{style} {case}: step {found.recommended} recommended, its true loss {100 * found.behind:+.2f} % from the "
                  f"best snapshot's. {found.verdict}")  # fmt: skip
            for step, loss in found.true.items():
                own = f", on its own questions {100 * found.own[step]:+.2f} %" if found.own else ""
                print(
                    f"  step {step}: true loss {100 * (loss / found.base - 1):+.2f} % against the base{own}", flush=True
                )


if __name__ == "__main__":
    main()
