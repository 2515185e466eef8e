"""How a page holds pictures: small ones as they are, large ones smaller, so that it can be sent."""

from __future__ import annotations

import base64
import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from deltaw import sheet


@pytest.mark.parametrize(
    ("size", "kind", "shown"), [((300, 200), "png", (300, 200)), ((8192, 3072), "webp", (4096, 1536))]
)
def test_a_page_holds_small_pictures_whole_and_large_ones_smaller(
    size: tuple[int, int], kind: str, shown: tuple[int, int]
) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (size[1] // 4, size[0] // 4, 3), dtype=np.uint8)
    picture = Image.fromarray(noise).resize(size)
    head, content = sheet.embedded(picture).split(",")
    assert head == f"data:image/{kind};base64"
    found = Image.open(io.BytesIO(base64.b64decode(content)))
    assert (found.format, found.size) == (kind.upper(), shown)
    assert sheet.is_large(picture) == (kind == "webp")
    assert picture.size == size, "the sheet itself is left alone"
    assert len(content) < 8_000_000


def test_a_sheet_is_written_whole(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 255, (40, 50, 3), dtype=np.uint8)
    n_bytes = sheet.write(Image.fromarray(noise), tmp_path / "new" / "sheet.png")
    assert n_bytes == (tmp_path / "new" / "sheet.png").stat().st_size
    with Image.open(tmp_path / "new" / "sheet.png") as read:
        assert np.array_equal(np.asarray(read), noise)
