"""`Match`: what became of every key of a file."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from deltaw.errors import plain


@dataclass(frozen=True)
class Match:
    """What became of a file's keys.

    Args:
        family: the base family that the file fits best.
        variant: which of the family's networks, "" where the base itself was given.
        dialects: dialect name to how many keys follow it; more than one is a mixed file.
        matched: canonical paths of the modules that are used.
        unmatched: file key to why no module of the base is meant by it.
        mismatched: canonical path (or fused name) to how its shapes differ from the base's.
        ignored: file key to why it is left out although it is understood.
        notes: what is odd but harmless: alpha 0, rank 0, trailing bytes.
    """

    family: str
    variant: str
    dialects: Mapping[str, int] = field(default_factory=dict)
    matched: tuple[str, ...] = ()
    unmatched: Mapping[str, str] = field(default_factory=dict)
    mismatched: Mapping[str, str] = field(default_factory=dict)
    ignored: Mapping[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    @property
    def partial(self) -> bool:
        """Something in the file is not used."""
        return bool(self.unmatched or self.mismatched or self.ignored)

    def counts(self) -> str:
        """The four counts as one line."""
        return (
            f"{len(self.matched)} modules matched, {len(self.unmatched)} keys unmatched, "
            f"{len(self.mismatched)} modules of another shape, {len(self.ignored)} keys ignored"
        )

    def losses(self, n_most: int = 5) -> list[str]:
        """What is not used and why, at most `n_most` lines a kind."""
        lines: list[str] = []
        for title, found in (
            ("unmatched", self.unmatched),
            ("other shape", self.mismatched),
            ("ignored", self.ignored),
        ):
            shown = list(found.items())[:n_most]
            lines += [plain(f"{title}: {name[:200]}: {why}").replace("\n", "\\n") for name, why in shown]
            if len(found) > len(shown):
                lines.append(f"{title}: and {len(found) - len(shown)} more")
        return lines
