"""What a run calls its pictures: captions with a trigger, the words that they share, the prompts of its contact sheet."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from deltaw.judge.columns import GENERIC_SUBJECTS


def with_trigger(caption: str, trigger: str) -> str:
    """The caption with the trigger in front, unless it holds it already."""
    if not trigger or trigger.casefold() in caption.casefold():
        return caption
    return f"{trigger}, {caption}" if caption else trigger


def prompts(captions: Sequence[str], training: Sequence[int], advice: Mapping[str, Any]) -> tuple[tuple[str, ...], str]:
    """Two captions that were trained and four subjects that were not, in the pictures' common words."""
    common = common_ending(captions)
    known = [captions[training[round(i * (len(training) - 1))]] for i in (0.25, 0.75)]
    subjects = [s for s in advice.get("subjects", GENERIC_SUBJECTS) if not any(c.startswith(s) for c in captions)]
    new = [f"{subject}, {common}" if common else subject for subject in subjects[:4]]
    ending = f" with the captions' common ending {common!r}" if common else ""
    return tuple(dict.fromkeys(p for p in (*new, *known) if p)) or ("",), f"{len(new)} new subjects{ending}, 2 captions"


def common_ending(captions: Sequence[str]) -> str:
    """The comma-separated parts that more than 80 % of the captions end with, as many as that holds for, or ""."""
    parts = [[part.strip() for part in os.fspath(c).split(",")] for c in captions if c]
    found = ""
    for n in range(1, 1 + max(map(len, parts), default=0)):
        endings = Counter(", ".join(p[-n:]) for p in parts if len(p) >= n)
        ending, count = endings.most_common(1)[0]
        if len(captions) < 2 or count <= 0.8 * len(captions):
            break
        found = ending
    return found
