"""The page of `deltaw check FOLDER --html FILE`: every finding with its pictures, as training will see them."""

from __future__ import annotations

import base64
import io
import textwrap
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2
from PIL import Image

from deltaw import tensorfile
from deltaw.data import buckets, reading
from deltaw.data.folder import Picture
from deltaw.data.image import crop_box, read
from deltaw.events import Phase, Saved, Tell, Tick, silent
from deltaw.verbs.pictures import PicturesReport, source_kind

THUMB_PX = 180
"""The longest side of a thumbnail on the page."""
STORED_SCALE = 2
"""Stored in twice the size it is shown at, for screens of high density."""
MOST_THUMBS = 600
"""Pictures with a thumbnail; a page of them weighs some 10 MB."""
MOST_IN_A_FINDING = 24
MOST_CAPTION = 600
"""Characters of a caption that are shown."""
WORTH_DRAWING = 0.01
"""A smaller share cut off is not drawn: its line would hide more than it shows."""


@dataclass(frozen=True)
class Card:
    """A picture on the page: sizes in px, margins that are cut off in percent of the picture."""

    number: int
    name: str
    original: str
    width_px: int
    height_px: int
    left: float
    top: float
    right: float
    bottom: float
    size: str
    bucket: str
    cut: str
    caption: str
    source: str
    notes: tuple[str, ...]

    @property
    def is_cut(self) -> bool:
        """Whether a crop is drawn."""
        return bool(self.cut)


def write(report: PicturesReport, out: str | Path, tell: Tell = silent) -> int:
    """Writes the page, with everything inside it; returns its size in bytes.

    Args:
        report: of `pictures.check`.
        out: the file.
        tell: hears a tick a picture.

    Raises:
        InputError: a picture is gone or changed since it was scanned.
        DeltawError: the page cannot be written.
    """
    shown = report.dataset.pictures[:MOST_THUMBS]
    tell(Phase("draw thumbnails", len(shown), "pictures"))
    cards: list[Card] = []
    numbered = [(number, picture, report.sizes_px[number]) for number, picture in enumerate(shown)]
    with closing(reading.ahead(lambda one: _card(*one), numbered)) as made:
        for card in made:
            cards.append(card)
            tell(Tick(len(cards), card.name))
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True)
    template = environment.from_string(Path(__file__).with_name("pictures.html.j2").read_text(encoding="utf-8"))
    n_bytes = tensorfile.write_text(out, template.render(**_content(report, cards)))
    tell(Saved(str(out), n_bytes, "page"))
    return n_bytes


def _content(report: PicturesReport, cards: Sequence[Card]) -> Mapping[str, Any]:
    dataset = report.dataset
    by_name = {card.name: card for card in cards}
    sizes = Counter(report.sizes_px)
    return {
        "name": dataset.root.resolve().name or "pictures", "pictures": cards,
        "subtitle": f"{len(dataset.pictures)} pictures, {len(dataset.skipped)} skipped, {dataset.n_ignored} other files left alone",
        "verdict": report.verdict, "skipped": dataset.skipped, "notes": dataset.notes,
        "sizes": [(f"{w}×{h}", n) for (w, h), n in sorted(sizes.items(), key=lambda item: item[0][0] / item[0][1])],
        "most": max(sizes.values()),
        "sources": sorted(Counter(source_kind(p.caption_source) for p in dataset.pictures).items()),
        "findings": [
            {"kind": f.kind, "text": f.text, "advice": f.advice, "names": f.names,
             "cards": [by_name[name] for name in f.names[:MOST_IN_A_FINDING] if name in by_name],
             "more": [name for i, name in enumerate(f.names) if i >= MOST_IN_A_FINDING or name not in by_name]}
            for f in report.findings
        ],
        "unseen": [p.name for p in dataset.pictures[len(cards):]],
    }  # fmt: skip


def _card(number: int, picture: Picture, bucket_px: buckets.Size) -> Card:
    image = read(picture.path, digest=picture.digest)
    (w, h), (left, top, right, bottom) = image.size, crop_box(image.size, bucket_px)
    scale = THUMB_PX / max(w, h)
    share, grown = buckets.crop_share(image.size, bucket_px), buckets.upscale(image.size, bucket_px)
    return Card(
        number, picture.name, _webp(image), max(1, round(w * scale)), max(1, round(h * scale)),
        100 * left / w, 100 * top / h, 100 * (w - right) / w, 100 * (h - bottom) / h,
        f"{w}×{h}", f"{bucket_px[0]}×{bucket_px[1]}", f"{share:.0%}" if share > WORTH_DRAWING else "",
        textwrap.shorten(picture.caption, MOST_CAPTION, placeholder=" …"), picture.caption_source,
        (*picture.notes, *([f"enlarged {grown:.1f} times"] if grown > 1 else [])),
    )  # fmt: skip


def _webp(image: Image.Image) -> str:
    image.thumbnail((THUMB_PX * STORED_SCALE, THUMB_PX * STORED_SCALE), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    image.save(buffer, "WEBP", quality=82)
    return base64.b64encode(buffer.getvalue()).decode()
