"""The report: what was planned, what happened and what came of it, as a value and as one HTML page."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import jinja2
import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from deltaw import tensorfile
from deltaw.data.folder import Dataset
from deltaw.judge.scores import Score
from deltaw.training.plan import Plan
from deltaw.training.verify import Proof

SMOOTHING_STEPS = 20
"""Time constant of the smoothed loss curve."""


@dataclass(frozen=True)
class Report:
    """What `train` gives back.

    Args:
        file: the LoRA. `folder`: everything about the run. `sheet`: the contact sheet, if one was drawn.
        n_bytes: size of the file.
        recommended_step: the snapshot to use, and `reason`.
        scores: per snapshot, against the base.
        proof: of the written file.
        seconds: phase to wall-clock seconds.
        steps_per_s: of the training loop alone.
        peak_rss_bytes: of the process; `peak_device_bytes` of a GPU, 0 without one.
        losses: per step, as trained.
    """

    file: Path
    folder: Path
    sheet: Path | None
    n_bytes: int
    recommended_step: int
    reason: str
    scores: tuple[Score, ...]
    proof: Proof
    seconds: dict[str, float]
    steps_per_s: float
    peak_rss_bytes: int
    peak_device_bytes: int
    losses: tuple[float, ...]

    @property
    def verdict(self) -> str:
        """One sentence of what was reached and what to do."""
        last, best = self.scores[-1], next(s for s in self.scores if s.step == self.recommended_step)
        gain = (
            f"{'held-out ' if last.n else ''}loss {100 * best.change.mean:+.1f} % against the base at step {best.step}"
        )
        if self.recommended_step == last.step:
            return f"Use {self.file.name}: {gain}; {self.reason}."
        return f"The snapshot of step {self.recommended_step} is recommended: {gain}; {self.reason}."


def write_html(path: Path, report: Report, plan: Plan, dataset: Dataset, subtitle: str) -> None:
    """Writes the page; everything is inside it, so it can be sent to somebody."""
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined)
    template = environment.from_string(Path(__file__).with_name("report.html.j2").read_text(encoding="utf-8"))
    page = template.render(
        name=report.file.stem, subtitle=subtitle, verdict=report.verdict, scores=report.scores,
        sheet=_base64(report.sheet.read_bytes()) if report.sheet else "", curves=_base64(curves(report)),
        measured_on=measured_on(plan), tables=_tables(report, plan, dataset),
    )  # fmt: skip
    tensorfile.write_text(path, page)


def measured_on(plan: Plan) -> str:
    """Which pictures the scores come from."""
    if plan.held_out:
        return f"{len(plan.held_out)} pictures that were kept out of training"
    return "training pictures, since there are too few to keep any out"


def _tables(report: Report, plan: Plan, dataset: Dataset) -> list[tuple[str, Sequence[str], list[Sequence[str]]]]:
    proof = report.proof
    proved: list[Sequence[str]] = [
        ("read by the ordinary loader", f"{proof.n_modules} modules, all matched and finite"),
        ("changes the network's output by", f"{proof.effect:.1%}"),
        ("deviation of the file's effect from the trained one", f"{proof.deviation:.3%}"),
        ("rounding of ΔW by the file's precision", f"{proof.rounding:.4%}"),
    ]
    planned: list[Sequence[str]] = [(name, _short(v.value), v.origin, v.reason) for name, v in plan.values.items()]
    pictures: list[Sequence[str]] = [
        (p.name, f"{p.size_px[0]}×{p.size_px[1]}", f"{plan.sizes_px[i][0]}×{plan.sizes_px[i][1]}",
         "held out" if i in plan.held_out else "trained", plan.captions[i], p.caption_source)
        for i, p in enumerate(dataset.pictures)
    ]  # fmt: skip
    pictures += [(s.name, "", "", "skipped", s.reason, "") for s in dataset.skipped]
    return [
        ("What was proved about the file", ("what", "found"), proved),
        ("What it cost", ("what", "spent"), list(cost(report))),
        ("The plan", ("option", "value", "from", "why"), planned),
        ("The pictures", ("file", "size", "seen at", "use", "caption", "from"), pictures),
    ]


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
    return [*rows, ("file", f"{report.n_bytes / 1e6:.2f} MB")]


def _short(value: object) -> str:
    return (
        " | ".join(value)
        if isinstance(value, tuple | list)
        else f"{value:g}"
        if isinstance(value, float)
        else str(value)
    )


def _base64(content: bytes) -> str:
    return base64.b64encode(content).decode()


def smoothed(losses: Sequence[float]) -> list[float]:
    """An exponential mean whose early values are not pulled to zero; non-finite losses are passed over."""
    decay = 1 - 1 / SMOOTHING_STEPS
    mean = weight = 0.0
    out = []
    for loss in losses:
        if loss - loss == 0.0:
            mean, weight = decay * mean + (1 - decay) * loss, decay * weight + (1 - decay)
        out.append(mean / weight if weight else float("nan"))
    return out


def curves(report: Report) -> bytes:
    """Training loss by step and, beside it, the change against the base with its interval, as SVG."""
    with matplotlib.rc_context(
        {"font.size": 10, "axes.spines.top": False, "axes.spines.right": False, "svg.hashsalt": "deltaw"}
    ):
        figure = Figure(figsize=(9, 3.2), layout="constrained", facecolor="none")
        left, right = figure.subplots(1, 2)
        steps = range(1, len(report.losses) + 1)
        left.plot(steps, report.losses, color="#c9c9c4", linewidth=0.8)
        left.plot(steps, smoothed(report.losses), color="#1c1c1e", linewidth=1.6)
        left.set(title="training loss, and smoothed", xlabel="step", facecolor="none")
        _plot_scores(right, report)
        buffer = io.BytesIO()
        figure.savefig(buffer, format="svg", metadata={"Date": None})
    return buffer.getvalue()


def _plot_scores(axes: Axes, report: Report) -> None:
    at = [0, *(s.step for s in report.scores)]
    middle = [0.0, *(100 * s.change.mean for s in report.scores)]
    if all(s.n > 1 for s in report.scores):
        low, high = (
            [0.0, *(100 * s.change.low for s in report.scores)],
            [0.0, *(100 * s.change.high for s in report.scores)],
        )
        axes.fill_between(at, low, high, color="#6a9955", alpha=0.2, linewidth=0)
    axes.plot(at, middle, color="#4f7a3d", marker="o", markersize=4)
    axes.axhline(0, color="#c9c9c4", linewidth=0.8)
    axes.axvline(report.recommended_step, color="#b5651d", linewidth=1, linestyle=":")
    axes.set(title="fixed questions: loss against the base, %", xlabel="step (dotted: recommended)", facecolor="none")
