"""Reports as one self-contained page: a picture and the numbers under it."""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from deltaw import tensorfile
from deltaw.errors import UsageError
from deltaw.verbs.conflicts import ConflictReport
from deltaw.verbs.inspect import InspectReport, block_of

if TYPE_CHECKING:
    from matplotlib.figure import Figure

FEW = 6
"""Pairs up to which a picture has room for their names and numbers."""
MOST_TABLES = 12
"""Pairs whose modules a page lists."""

_PAGE = """<!doctype html><html lang="en"><meta charset="utf-8"><title>{title}</title>
<style>body{{font:15px/1.5 system-ui,sans-serif;margin:2rem auto;max-width:60rem;padding:0 1rem}}
img{{max-width:100%}}table{{border-collapse:collapse}}td,th{{padding:.15rem .8rem;text-align:left;border-bottom:1px solid #ddd}}
</style><h1>{title}</h1><img alt="{alt}" src="data:image/png;base64,{image}">{tables}</html>
"""


def of_inspect(report: InspectReport, out: str | Path) -> int:
    """Energy and spectrum by block; returns the size of the page in bytes.

    Raises:
        UsageError: the report was made without `spectra`.
    """
    if not report.blocks:
        raise UsageError("the report has no spectra", expected="inspect(..., spectra=True)")
    figure = _figure(max(3.0, 0.28 * len(report.blocks)))
    left, right = figure.subplots(1, 2)
    names = list(report.blocks)
    left.barh(names[::-1], [report.blocks[name] for name in names[::-1]], color="#4477aa")
    left.set_title("‖ΔW‖ by block")
    for name in names:
        energies = [layer.spectrum for layer in report.layers if layer.spectrum and block_of(layer.path) == name]
        longest = max((len(values) for values in energies), default=0)
        mean = [sum(v[i] ** 2 for v in energies if i < len(v)) ** 0.5 for i in range(longest)]
        right.semilogy([value for value in mean if value > 1e-9 * max(mean, default=1)], lw=0.8)
    right.set_title("singular values, one line a block")
    right.set_xlabel("rank")
    rows = [(layer.path, layer.algorithm, layer.rank, layer.alpha, layer.dtype, _short(layer.norm), _short(layer.effective_rank))
            for layer in report.layers]  # fmt: skip
    head = ("module", "algorithm", "rank", "alpha", "type", "norm", "effective rank")
    about = [(key, value[:300]) for key, value in sorted(report.metadata.items())]
    tables = _table(head, rows) + _table(("metadata", ""), about)
    return _write(out, f"{report.path.name}: {report.title}", "energy and spectrum by block", figure, tables)


def of_conflicts(report: ConflictReport, out: str | Path) -> int:
    """Cosines by block for every pair, and by module for those that get along worst; returns the page's size in bytes."""
    blocks = sorted({block for pair in report.pairs for block in pair.blocks})
    n_pairs = len(report.pairs)
    figure = _figure(max(3.0, 0.28 * len(blocks)) + (1.5 if n_pairs > FEW else 0))
    axes = figure.subplots()
    values = [[pair.blocks.get(block, float("nan")) for pair in report.pairs] for block in blocks]
    image = axes.imshow(values, cmap="RdBu", vmin=-1, vmax=1, aspect="auto")
    axes.set_yticks(range(len(blocks)), blocks)
    if n_pairs <= FEW:
        axes.set_xticks(range(n_pairs), [f"{a}\n{b}" for a, b in (pair.names for pair in report.pairs)])
        for y, row in enumerate(values):
            for x, value in enumerate(row):
                if value == value:
                    colour = "white" if abs(value) > 0.6 else "black"
                    axes.text(x, y, f"{value:+.2f}", ha="center", va="center", color=colour, fontsize=8)
    elif n_pairs <= 60:
        axes.set_xticks(range(n_pairs), [" / ".join(pair.names) for pair in report.pairs], rotation=90, fontsize=7)
    else:
        axes.set_xticks([])
        axes.set_xlabel(f"{n_pairs} pairs, in the order of the files")
    figure.colorbar(image, label="cosine")
    worst = sorted(report.pairs, key=lambda pair: pair.cosine)[:MOST_TABLES]
    said = "Cosine of two changes: -1 they undo each other, 0 they leave each other alone, +1 they double."
    if n_pairs > len(worst):
        said += f" The tables show the {len(worst)} of {n_pairs} pairs with the lowest cosine."
    tables = f"<p>{html.escape(said)}</p>" + "".join(
        f"<h2>{html.escape(' and '.join(pair.names))}: {pair.cosine:+.3f}</h2>"
        + _table(("module", "cosine", "angle out °", "angle in °"),
                 [(path, f"{o.cosine:+.4f}", f"{o.angle_out:.1f}", f"{o.angle_in:.1f}") for path, o in pair.layers.items()])
        for pair in worst
    )  # fmt: skip
    return _write(out, "Where the changes meet", "cosines by block", figure, tables)


def _figure(height: float) -> Figure:
    from matplotlib.figure import Figure

    return Figure(figsize=(11, height), layout="constrained")


def _short(value: float | None) -> str:
    return "" if value is None else f"{value:.3g}"


def _table(head: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """Every cell is escaped: names and metadata come from files that others wrote."""
    lines = ["<table><tr>", *(f"<th>{html.escape(name)}</th>" for name in head), "</tr>"]
    for row in rows:
        lines.append(
            "<tr>" + "".join(f"<td>{html.escape('' if cell is None else str(cell))}</td>" for cell in row) + "</tr>"
        )
    return "".join([*lines, "</table>"])


def _write(out: str | Path, title: str, alt: str, figure: Figure, tables: str) -> int:
    picture = io.BytesIO()
    figure.savefig(picture, format="png", dpi=110)
    image = base64.b64encode(picture.getvalue()).decode()
    page = _PAGE.format(title=html.escape(title), alt=html.escape(alt), image=image, tables=tables)
    return tensorfile.write_text(out, page)
