"""Made-up art: coloured discs and squares of a few concepts in two styles, written as `pretrain.render` writes it."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # pretrain/ is not part of the installed package

INKS = {
    "1f34e": (220, 40, 40),
    "1f433": (40, 90, 220),
    "1f7e2": (40, 160, 60),
    "1f40d": (120, 200, 60),
    "1f916": (150, 150, 150),
}


def picture(concept: str, style: str) -> np.ndarray:
    canvas = np.full((128, 128, 3), 255, np.uint8)
    y, x = np.mgrid[:128, :128] - 64
    inside = np.hypot(x, y) < 40 if style == "noto" else (abs(x) < 36) & (abs(y) < 36)
    canvas[inside] = INKS[concept]
    return canvas


def record(concept: str, style: str) -> dict:
    return {
        "id": concept, "style": style, "style_word": style, "name": f"thing {concept}", "alt_names": ["item"], "category": "shape",
        "keywords": ["round", "plain", "toy"], "colors": ["red"], "caption": f"thing {concept}, shape, red, {style} style",
    }  # fmt: skip


@pytest.fixture
def art(tmp_path: Path) -> Path:
    """A folder with the two styles; 1f916 is a novel concept there, 1f40d only in noto."""
    for style in ("noto", "twemoji"):
        ids = [i for i in INKS if style == "noto" or i != "1f40d"]
        np.savez_compressed(tmp_path / f"{style}.npz", images=np.stack([picture(i, style) for i in ids]))
        (tmp_path / f"{style}.json").write_text(json.dumps([record(i, style) for i in ids]))
    return tmp_path
