"""The report as one HTML page that holds everything and can be sent to somebody."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from pathlib import Path

import jinja2
from PIL import Image

from deltaw import sheet, tensorfile
from deltaw.data.folder import Dataset
from deltaw.training import curves
from deltaw.training.plan import Plan
from deltaw.training.profiling import Shares
from deltaw.training.report import Report, cost

Table = tuple[str, Sequence[str], list[Sequence[str]]]
"""A heading, the names of the columns, the rows."""


def write(
    path: Path, report: Report, drawn: Image.Image, plan: Plan, dataset: Dataset, subtitle: str, shares: Shares | None = None
) -> None:  # fmt: skip
    """Writes the page.

    Args:
        path: the file.
        report: what came of the run.
        drawn: the contact sheet.
        plan: every value of it.
        dataset: its pictures.
        subtitle: one line about the run.
        shares: where the time of a step went, if that was measured.
    """
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined)
    template = environment.from_string(Path(__file__).with_name("report.html.j2").read_text(encoding="utf-8"))
    profile = {
        name: _base64(curves.draw_shares(shares.parts, colours)) if shares else ""
        for name, colours in (("light", curves.LIGHT), ("dark", curves.DARK))
    }
    page = template.render(
        profile=profile, shares=shares,
        name=report.file.stem, subtitle=subtitle, report=report, sheet=sheet.embedded(drawn), is_reduced=sheet.is_large(drawn),
        light=_base64(curves.draw(report, curves.LIGHT)), dark=_base64(curves.draw(report, curves.DARK)),
        pairs=sheet.embedded(report.copies.pairs), tables=_tables(report, plan, dataset),
    )  # fmt: skip
    tensorfile.write_text(path, page)


def _tables(report: Report, plan: Plan, dataset: Dataset) -> list[Table]:
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


def _short(value: object) -> str:
    if isinstance(value, tuple | list):
        return " | ".join(value)
    return f"{value:g}" if isinstance(value, float) else str(value)


def _base64(content: bytes) -> str:
    return base64.b64encode(content).decode()
