"""One to three colour words for a picture, measured from its pixels."""

from __future__ import annotations

import numpy as np
from PIL import Image

HUES = (
    (14, "red"),
    (34, "orange"),
    (70, "yellow"),
    (165, "green"),
    (255, "blue"),
    (290, "purple"),
    (335, "pink"),
    (361, "red"),
)
"""Upper bounds in degrees; brown is a dark orange, see `_names`."""
NAMES = ("black", "gray", "white", "brown", "red", "orange", "yellow", "green", "blue", "purple", "pink", "beige")
SHARE = 0.18
"""A colour is named when this much of the drawing has it."""


def words(picture: np.ndarray, drawn: np.ndarray | None = None) -> list[str]:
    """The picture's main colours, the most frequent first.

    Args:
        picture: (h, w, 3) uint8.
        drawn: (h, w) bool, which pixels belong to the drawing; those that are not white, if not given.
    """
    if drawn is None:
        drawn = (picture < 250).any(-1)
    if not drawn.any():
        return ["white"]
    counts = np.bincount(_names(picture)[drawn], minlength=len(NAMES)) / drawn.sum()
    order = [i for i in np.argsort(-counts) if counts[i] >= SHARE][:3]
    return [NAMES[i] for i in order] or [NAMES[int(counts.argmax())]]


def _names(picture: np.ndarray) -> np.ndarray:
    """The index into NAMES of each pixel."""
    hue, saturation, value = (np.asarray(c, np.float32) for c in Image.fromarray(picture).convert("HSV").split())
    hue, saturation, value = hue * 360 / 255, saturation / 255, value / 255
    bounds = [bound for bound, _ in HUES]
    named = np.array([NAMES.index(word) for _, word in HUES])[
        np.searchsorted(bounds, hue, side="right").clip(max=len(HUES) - 1)
    ]
    brown = (hue < 45) & (value < 0.72) & (saturation > 0.25)
    named = np.where(brown, NAMES.index("brown"), named)
    beige = (hue > 15) & (hue < 50) & (value > 0.85) & (saturation < 0.4)
    named = np.where(beige, NAMES.index("beige"), named)
    gray = saturation < 0.18
    named = np.where(gray, NAMES.index("gray"), named)
    named = np.where(gray & (value > 0.9), NAMES.index("white"), named)
    return np.where(value < 0.28, NAMES.index("black"), named)
