"""Contact sheets: pictures in a grid with a word beside each row and above each column, and how a page holds them."""

from __future__ import annotations

import base64
import io
import textwrap
from collections.abc import Sequence
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from deltaw.atomic import replacing

GAP_PX = 6
INK, PAPER, QUIET = (28, 28, 30), (250, 250, 248), (110, 110, 115)
MIN_CELL_PX = 144
"""Smaller pictures are shown enlarged, so that a label fits above them."""
LARGE_PX = 1 << 22
"""Of a picture: beyond so many a page, which is to be sent, holds a smaller copy."""
SHOWN_PX = 4096
"""The longer side of that copy."""
COMPRESSION = 2
"""zlib's level for a sheet's PNG: of one of 20 million pixels it takes 1.6 instead of the usual level's 6.8 s, for 15 % more bytes."""


def grid(
    rows: Sequence[Sequence[Image.Image]], row_labels: Sequence[str], column_labels: Sequence[str], title: str = ""
) -> Image.Image:
    """One picture of all: rows × columns, labelled.

    Args:
        rows: pictures, every row as long as `column_labels`; sizes may differ and are fitted.
        row_labels: at the left, may hold several lines.
        column_labels: above, wrapped to the width of a cell.
        title: above everything.
    """
    width = max(MIN_CELL_PX, max(p.width for row in rows for p in row))
    height = round(width * max(p.height / p.width for row in rows for p in row))
    font = ImageFont.load_default(size=max(12, width // 11))
    letters = max(8, round(width / font.getlength("n")))
    heads = ["\n".join(textwrap.wrap(label, letters)[:4]) for label in column_labels]
    sides = ["\n".join("\n".join(textwrap.wrap(line, 16)) for line in label.split("\n")) for label in row_labels]
    left = max((_extent(side, font)[0] for side in sides), default=0) + 3 * GAP_PX
    above = max((_extent(head, font)[1] for head in heads), default=0) + 3 * GAP_PX
    banner = _extent(title, font)[1] + 3 * GAP_PX if title else 0
    size = (left + len(heads) * (width + GAP_PX) + GAP_PX, banner + above + len(rows) * (height + GAP_PX) + GAP_PX)
    sheet = Image.new("RGB", size, PAPER)
    draw = ImageDraw.Draw(sheet)
    if title:
        draw.text((GAP_PX * 2, GAP_PX * 2), title, QUIET, font)
    for column, head in enumerate(heads):
        at = left + column * (width + GAP_PX) + width / 2
        draw.multiline_text((at, banner + above - GAP_PX), head, INK, font, anchor="md", align="center")
    for index, row in enumerate(rows):
        top = banner + above + index * (height + GAP_PX)
        draw.multiline_text((GAP_PX * 2, top + height / 2), sides[index], INK, font, anchor="lm")
        for column, picture in enumerate(row):
            shown = picture if picture.size == (width, height) else _fitted(picture, width, height)
            sheet.paste(shown, (left + column * (width + GAP_PX), top))
    return sheet


def write(picture: Image.Image, path: Path) -> int:
    """Writes a sheet as PNG, whole or not at all; returns its size in bytes.

    Raises:
        DeltawError: the folder cannot be written or the disk is full.
    """
    with replacing(path) as temporary:
        picture.save(temporary, "PNG", compress_level=COMPRESSION)
    return path.stat().st_size


def is_large(picture: Image.Image) -> bool:
    """Whether a page holds a smaller copy."""
    return picture.width * picture.height > LARGE_PX


def embedded(picture: Image.Image) -> str:
    """A picture as a page holds it, a data URL: whole as PNG, or a large one smaller and as WebP."""
    content = io.BytesIO()
    if not is_large(picture):
        picture.save(content, "PNG")
        return f"data:image/png;base64,{base64.b64encode(content.getvalue()).decode()}"
    small = picture.copy()
    small.thumbnail((SHOWN_PX, SHOWN_PX), Image.Resampling.LANCZOS)
    small.save(content, "WEBP", quality=88)
    return f"data:image/webp;base64,{base64.b64encode(content.getvalue()).decode()}"


def _extent(text: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont) -> tuple[int, int]:
    if not text:
        return 0, 0
    box = ImageDraw.Draw(Image.new("RGB", (1, 1))).multiline_textbbox((0, 0), text, font)
    return round(box[2]), round(box[3])


def _fitted(picture: Image.Image, width: int, height: int) -> Image.Image:
    scale = min(width / picture.width, height / picture.height)
    small = picture.resize((round(picture.width * scale), round(picture.height * scale)), Image.Resampling.LANCZOS)
    cell = Image.new("RGB", (width, height), PAPER)
    cell.paste(small, ((width - small.width) // 2, (height - small.height) // 2))
    return cell
