"""What a contact sheet draws in every row: prompts, one that does not call the result up, the calling words alone."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

GENERIC_SUBJECTS = ("a cat", "a house by a lake", "a portrait of a woman", "a bowl of fruit")
"""What a contact sheet tries beside the user's own captions when the base recommends nothing."""


@dataclass(frozen=True)
class Column:
    """A column of the contact sheet: what is drawn in every row, from the same seed, and whether it calls the result up."""

    label: str
    prompt: str
    seed: int
    called: bool = True


def columns(prompts: Sequence[str], words: str, seed: int, n_seeds: int = 1) -> tuple[Column, ...]:
    """Every prompt with its own seeds, then the first without the words that call the result up, and these alone.

    Args:
        prompts: at least one.
        words: trigger or style words; "" where there are none.
        seed: of the first column.
        n_seeds: columns a prompt.
    """
    found = [Column(p, p, seed + i * n_seeds + j) for i, p in enumerate(prompts) for j in range(n_seeds)]
    if words:
        plain = without(prompts[0], words)
        found.append(Column(f"not called: {plain or 'nothing'}", plain, seed, called=False))
        found.append(Column(f"called alone: {words}", words, seed))
    return tuple(found)


def without(prompt: str, words: str) -> str:
    """The prompt less some words and the commas around them."""
    kept = re.sub(re.escape(words), "", prompt, flags=re.IGNORECASE)
    return ", ".join(" ".join(part.split()) for part in kept.split(",") if part.strip())
