"""The page of `compare`: the advice, the sheet, the figures; one file that can be sent."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from pathlib import Path

import jinja2
from PIL import Image

from deltaw import tensorfile
from deltaw.judge.nearness import Limits


def write(
    path: Path, advice: str, columns: Sequence[str], rows: Sequence[Sequence[str]], best: str, n_pictures: int,
    limits: Limits | None, sheet: Image.Image,
) -> None:  # fmt: skip
    """Writes the page.

    Args:
        path: the file.
        advice: one sentence, at the top.
        columns: heads of the table.
        rows: a contender each, its name first.
        best: name of the recommended one.
        n_pictures: reference pictures that were asked about.
        limits: what counts as near a reference picture.
        sheet: the contact sheet.
    """
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined)
    template = environment.from_string(Path(__file__).with_name("compare.html.j2").read_text(encoding="utf-8"))
    picture = io.BytesIO()
    sheet.save(picture, "PNG")
    page = template.render(
        advice=advice, columns=columns, rows=rows, best=best, n_pictures=n_pictures, limits=limits,
        sheet=base64.b64encode(picture.getvalue()).decode(),
    )  # fmt: skip
    tensorfile.write_text(path, page)
