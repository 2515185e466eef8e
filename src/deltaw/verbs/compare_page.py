"""The page of `compare`: the advice, the sheet, the figures; one file that can be sent."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import jinja2
from PIL import Image

from deltaw import tensorfile
from deltaw.judge.nearness import Limits
from deltaw.sheet import embedded, is_large


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
    page = template.render(
        advice=advice, columns=columns, rows=rows, best=best, n_pictures=n_pictures, limits=limits,
        sheet=embedded(sheet), is_reduced=is_large(sheet),
    )  # fmt: skip
    tensorfile.write_text(path, page)
