"""SVG icons of an iconify package -> 128-pixel pictures over white.

resvg draws them without any system library; fonts are off, so that a picture is the same on every machine.
"""

from __future__ import annotations

import io
import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import resvg_py
from PIL import Image

SIZE_PX = 128


@dataclass(frozen=True)
class Icon:
    """One icon: its SVG body and the box (left, top, width, height) that the body is drawn in."""

    name: str
    body: str
    box: tuple[float, float, float, float]


def read_set(folder: Path) -> dict[str, Icon]:
    """All icons of an unpacked iconify package, visible or hidden, by name; aliases are left out."""
    listing = json.loads((folder / "icons.json").read_text("utf-8"))
    width, height = listing.get("width", 16), listing.get("height", 16)
    return {
        name: Icon(
            name,
            entry["body"],
            (entry.get("left", 0), entry.get("top", 0), entry.get("width", width), entry.get("height", height)),
        )
        for name, entry in listing["icons"].items()
    }


def draw(
    icon: Icon, zoom: float = 1.0, attributes: str = "", paper: str = "#ffffff", offset: tuple[float, float] = (0, 0)
) -> np.ndarray:
    """The icon as (128, 128, 3) uint8, its longer side `zoom` times the picture's.

    `attributes` go to a group around the body: its shapes inherit what they do not set themselves.
    The body stays in an <svg> with its own box, or stray parts outside the box would show.
    """
    left, top, width, height = icon.box
    side = max(width, height)
    w, h = zoom * SIZE_PX * width / side, zoom * SIZE_PX * height / side
    x, y = (SIZE_PX - w) / 2 + offset[0], (SIZE_PX - h) / 2 + offset[1]
    text = (
        f'<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" width="{SIZE_PX}" height="{SIZE_PX}">'
        f'<svg x="{x}" y="{y}" width="{w}" height="{h}" viewBox="{left} {top} {width} {height}">'
        f"<g {attributes}>{icon.body}</g></svg></svg>"
    )
    png = bytes(resvg_py.svg_to_bytes(svg_string=text, background=paper, skip_system_fonts=True))
    return np.asarray(Image.open(io.BytesIO(png)).convert("RGB"))


def to_icon_units(icon: Icon, pixels: float, zoom: float) -> float:
    """A length in picture pixels as a length in the icon's own units, for stroke widths."""
    return pixels * max(icon.box[2:]) / (zoom * SIZE_PX)
