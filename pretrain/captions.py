"""Captions from records: a fixed one for measuring, a random one for every training step."""

from __future__ import annotations

from typing import Any

import numpy as np


def fixed(record: dict[str, Any]) -> str:
    """ "NAME, CATEGORY, COLOUR and COLOUR, STYLE style"; the category is left out when the name holds it."""
    parts = [record["name"]]
    if record["category"] not in record["name"]:
        parts.append(record["category"])
    return ", ".join([*parts, " and ".join(record["colors"]), f"{record['style_word']} style"])


def prompt(name: str, style_word: str = "") -> str:
    """What a user would ask for."""
    return f"{name}, {style_word} style" if style_word else name


def drawn(record: dict[str, Any], random: np.random.Generator, *, empty: float = 0.1) -> str:
    """A caption as users vary them; with the chance `empty` none at all, for classifier-free guidance."""
    if random.random() < empty:
        return ""
    names = record["alt_names"]
    parts = [names[random.integers(len(names))] if names and random.random() < 0.25 else record["name"]]
    if random.random() < 0.5 and record["category"] not in parts[0]:
        parts.append(record["category"])
    if random.random() < 0.5 and (words := record["keywords"][:6]):  # the tail of the keywords is noisy
        parts += list(random.permutation(words)[: random.integers(1, 3)])
    if random.random() < 0.5:
        parts.append(" and ".join(record["colors"]))
    if random.random() < 0.9:
        parts.append(f"{record['style_word']} style")
    return ", ".join(map(str, parts))


def may_flip(record: dict[str, Any]) -> bool:
    """A mirrored picture would contradict a name that says a side."""
    return not any(word in record["name"] for word in ("left", "right", "pointing"))
