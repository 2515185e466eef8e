"""The perceptual hash: the bits that ImageHash 4.3.2 finds, and alike for pictures that look alike."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from deltaw.data import looks

EXAMPLES = Path(__file__).parents[2] / "examples" / "streamline"


@pytest.mark.parametrize(("name", "found"), [("airplane", 0xFBC3B40FC5909662), ("alien", 0xBB3B91B0DAC2CAC2)])
def test_it_is_imagehashs(name: str, found: int) -> None:
    assert looks.looks(Image.open(EXAMPLES / f"{name}.png").convert("RGB")).hash == found


def test_smaller_and_darker_pictures_look_alike_and_others_do_not() -> None:
    picture, other = (Image.open(EXAMPLES / f"{name}.png").convert("RGB") for name in ("airplane", "alien"))
    changed = picture.resize((96, 96)).point(lambda level: level * 0.8)
    first, second, third = (looks.looks(one).hash for one in (picture, changed, other))
    assert (first ^ second).bit_count() <= 6
    assert (first ^ third).bit_count() >= 20
