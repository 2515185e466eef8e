"""What `train` gives back: what happened, what came of it, and one sentence of advice."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from deltaw.judge.choice import PRICE, Choice
from deltaw.judge.drift import Drift
from deltaw.judge.scores import Score
from deltaw.training.drawing import Copies
from deltaw.training.process import Peak
from deltaw.training.verify import Proof

MORE = 1.5
"""How many times as long a run should be whose loss is still falling."""


@dataclass(frozen=True)
class Report:
    """What `train` gives back.

    Args:
        file: the LoRA. `folder`: everything about the run. `sheet`: the contact sheet.
        n_bytes: size of the file.
        choice: which snapshot the file is, and why. `name`: of what the file holds.
        retrained: pictures that the file was trained anew on for as many steps, the held out ones too; 0 if it was not.
        best: its score against the base.
        scores: per snapshot, against the base.
        n_steps: planned. `stopped`: where further steps had stopped paying, 0 if nowhere.
        measured_on: which pictures the scores are about. `held_out`: whether they were kept out of training.
        drifts: step to how far predictions moved from the base's.
        copies: how near drawn pictures come to trained ones.
        proof: of the written file.
        seconds: phase to wall-clock seconds.
        steps_per_s: of the training loop alone.
        peak_rss_bytes: of the process; `peak_device_bytes` of a GPU, 0 without one.
        losses: per step, as trained. `n_skipped`: steps that had no finite loss or gradient.
        foretold: memory and time, (what, predicted and used).
        peaks: memory of the run's other processes.
    """

    file: Path
    folder: Path
    sheet: Path
    n_bytes: int
    choice: Choice
    name: str
    retrained: int
    best: Score
    scores: tuple[Score, ...]
    n_steps: int
    stopped: int
    measured_on: str
    held_out: bool
    drifts: Mapping[int, Drift]
    copies: Copies
    proof: Proof
    seconds: dict[str, float]
    steps_per_s: float
    peak_rss_bytes: int
    peak_device_bytes: int
    losses: tuple[float, ...]
    n_skipped: int
    foretold: tuple[tuple[str, str], ...]
    peaks: tuple[Peak, ...] = ()

    @property
    def recommended_step(self) -> int:
        """The optimizer steps behind the file."""
        return self.choice.best.step

    @property
    def is_weighted(self) -> bool:
        """Whether training weights the times, so that there are two losses to tell."""
        return any(s.weighted != s.change for s in self.scores)

    @property
    def kind(self) -> str:
        """What the loss is called in a sentence."""
        return "held-out loss" if self.held_out else "loss on moved pictures"

    @property
    def verdict(self) -> str:
        """One sentence: what to use, what it reached, what to do next time."""
        change = self.best.change
        reach = f", 95 % interval {100 * change.low:+.1f} to {100 * change.high:+.1f} %" if self.best.n > 1 else ""
        gain = f"{self.kind} {100 * change.mean:+.1f} % against the base{reach}"
        anew = f"trained anew on all {self.retrained} pictures for {self.recommended_step} steps; without the held out ones: "
        what = anew if self.retrained else f"{self.choice.best.name} of {self.n_steps}; "
        return f"Use {self.file.name} ({what}{gain}): {self._next()}."

    def _next(self) -> str:
        last = self.scores[-1]
        copied, of = self.copies.count(self.name, "copied"), len(self.copies.nearest[self.name])
        if self.choice.is_asked_for:
            copies = f"; {copied} of {of} pictures drawn with it copy a trained one" if copied else ""
            return self.choice.reason + copies
        if change := self.choice.further:
            more = round(last.step * MORE)
            return f"more steps would pay, as the loss was still falling; --steps {more} may lower it by another {-change:.1%}"
        if copied:
            return f"but {copied} of {of} pictures drawn with it copy a trained one; train on more pictures, or for fewer steps"
        rise = last.loss / self.best.loss - 1
        if rise > PRICE:
            return f"{self.choice.reason}, and by step {last.step} the loss had risen by {rise:.1%}; fewer steps are enough"
        return f"{self.choice.reason}; more steps would not pay"


def cost(report: Report) -> list[tuple[str, str]]:
    """What a run took: seconds by phase, speed, memory, and the size of the file."""
    rows = [(phase, f"{seconds:.1f} s") for phase, seconds in report.seconds.items()]
    rows += [
        ("all", f"{sum(report.seconds.values()):.1f} s"),
        ("training speed", f"{report.steps_per_s:.2f} steps/s"),
        ("peak memory", f"{report.peak_rss_bytes / 1e9:.2f} GB"),
    ]
    if report.peak_device_bytes:
        rows.append(("peak memory of the GPU", f"{report.peak_device_bytes / 1e9:.2f} GB"))
    for peak in report.peaks:
        beside = f", of the GPU {peak.device_bytes / 1e9:.2f} GB" if peak.device_bytes else ""
        rows.append((f"peak memory of the process on {peak.device}", f"{peak.rss_bytes / 1e9:.2f} GB{beside}"))
    if report.n_skipped:
        rows.append(("steps skipped, not finite", str(report.n_skipped)))
    return [*rows, ("file", f"{report.n_bytes / 1e6:.2f} MB"), *report.foretold]
