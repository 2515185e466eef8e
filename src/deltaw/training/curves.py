"""The report's curves, as SVG: learning, the fixed questions with their intervals, drift, copies."""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from deltaw.judge.scores import Interval
from deltaw.training.report import Report

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

SMOOTHING_STEPS = 20
"""Time constant of the smoothed loss curve."""
LIGHT = {
    "ink": "#1c1c1e",
    "quiet": "#8e8e93",
    "faint": "#d1d1cc",
    "good": "#4f7a3d",
    "other": "#3b6ea5",
    "mark": "#b5651d",
}
DARK = {
    "ink": "#f2f2f0",
    "quiet": "#98989d",
    "faint": "#48484a",
    "good": "#8fc178",
    "other": "#7fb0e0",
    "mark": "#e09a5a",
}


def draw(report: Report, colours: dict[str, str]) -> bytes:
    """The four panels in the given colours, on nothing."""

    def fill(figure: Figure) -> None:
        first, second, third, fourth = figure.subplots(1, 4)
        _losses(first, report.losses, colours)
        _scores(second, report, colours)
        _drift(third, report, colours)
        _copies(fourth, report, colours)
        for axes in (first, second, third, fourth):
            axes.set_xlabel("step")
            axes.xaxis.set_major_locator(_whole_numbers())

    return _svg((13, 3.2), colours, fill)


def draw_shares(parts: Mapping[str, float], colours: dict[str, str]) -> bytes:
    """Where the time of a step goes: a bar a part, the largest on top, the adapters' own in another colour."""
    order = sorted(parts, key=lambda part: parts[part])

    def fill(figure: Figure) -> None:
        axes = figure.subplots()
        bars = axes.barh(order, [100 * parts[part] for part in order], height=0.7,
                         color=[colours["mark" if part == "adapters" else "other"] for part in order])  # fmt: skip
        axes.bar_label(bars, [f"{100 * parts[part]:.0f} %" for part in order], padding=4, color=colours["ink"])
        axes.tick_params(length=0, labelcolor=colours["ink"])
        axes.margins(x=0.08)
        axes.xaxis.set_visible(False)
        axes.spines[["bottom", "left"]].set_visible(False)

    return _svg((8, 0.3 * len(order) + 0.3), colours, fill)


def _svg(inches: tuple[float, float], colours: dict[str, str], fill: Callable[[Figure], None]) -> bytes:
    """A figure in the given colours, on nothing, the same bytes for the same numbers."""
    import matplotlib  # here, since a run starts a quarter of a second sooner without it
    from matplotlib.figure import Figure

    with matplotlib.rc_context(_style(colours)):
        figure = Figure(figsize=inches, layout="constrained", facecolor="none")
        fill(figure)
        buffer = io.BytesIO()
        figure.savefig(buffer, format="svg", metadata={"Date": None})
    return buffer.getvalue()


def _whole_numbers() -> Any:
    """Ticks of an axis of steps: at most five or so, at integers."""
    from matplotlib.ticker import MaxNLocator

    return MaxNLocator(5, integer=True)


def _style(colours: dict[str, str]) -> Any:
    return {
        "font.size": 10, "axes.spines.top": False, "axes.spines.right": False, "svg.hashsalt": "deltaw",
        "text.color": colours["ink"], "axes.labelcolor": colours["ink"], "axes.edgecolor": colours["quiet"],
        "xtick.color": colours["quiet"], "ytick.color": colours["quiet"], "axes.titlesize": 10.5, "legend.frameon": False,
        "axes.facecolor": "none", "legend.fontsize": 9,
    }  # fmt: skip


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


def _losses(axes: Axes, losses: Sequence[float], colours: dict[str, str]) -> None:
    steps = range(1, len(losses) + 1)
    axes.plot(steps, losses, color=colours["faint"], linewidth=0.8)
    axes.plot(steps, smoothed(losses), color=colours["ink"], linewidth=1.6)
    axes.set_title("training loss, and smoothed")


def _scores(axes: Axes, report: Report, colours: dict[str, str]) -> None:
    """The change of the loss against the base with its interval, and the recommended step."""
    at = [0, *(s.step for s in report.scores)]
    _interval(axes, at, [s.change for s in report.scores], colours["good"], "every time alike")
    if report.is_weighted:
        _interval(axes, at, [s.weighted for s in report.scores], colours["other"], "as training weights them")
        axes.legend(loc="best")
    axes.axhline(0, color=colours["faint"], linewidth=0.8)
    axes.axvline(report.recommended_step, color=colours["mark"], linewidth=1, linestyle=":")
    axes.annotate("used", (report.recommended_step, 1), xycoords=("data", "axes fraction"), color=colours["mark"],
                  fontsize=9, ha="center", va="bottom")  # fmt: skip
    axes.set_title(f"{report.kind} against the base, %", pad=14)


def _interval(axes: Axes, at: Sequence[int], found: Sequence[Interval], colour: str, label: str) -> None:
    if all(i.low == i.low for i in found):
        axes.fill_between(at, [0.0, *(100 * i.low for i in found)], [0.0, *(100 * i.high for i in found)], color=colour,
                          alpha=0.2, linewidth=0)  # fmt: skip
    axes.plot(at, [0.0, *(100 * i.mean for i in found)], color=colour, marker="o", markersize=4, label=label)


def _copies(axes: Axes, report: Report, colours: dict[str, str]) -> None:
    """The share of drawn pictures that copy a trained one, or come close, by snapshot."""
    found = report.copies
    at = [s.step for s in report.scores if f"step {s.step}" in found.nearest]
    for verdict, colour in (("close", colours["other"]), ("copied", colours["mark"])):
        shares = [100 * found.count(f"step {step}", verdict) / len(found.nearest[f"step {step}"]) for step in at]
        axes.plot([0, *at], [0.0, *shares], color=colour, marker="o", markersize=4, label=verdict)
    axes.set_ylim(-3, 103)
    axes.set_title("drawn pictures near trained ones, %")
    axes.legend(loc="best")


def _drift(axes: Axes, report: Report, colours: dict[str, str]) -> None:
    """How far predictions moved from the base's, called up and not."""
    at = [0, *report.drifts]
    drifts = report.drifts.values()
    axes.plot(
        at, [0.0, *(100 * d.called for d in drifts)], color=colours["good"], marker="o", markersize=4, label="called up"
    )
    axes.plot(
        at, [0.0, *(100 * d.plain for d in drifts)], color=colours["mark"], marker="o", markersize=4, label="not called"
    )
    axes.set_ylim(bottom=0)
    axes.set_title("predictions moved, %")
    axes.legend(loc="best")
