"""Which pictures a file was trained on, said so that only who has them can tell."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

ENTRY = "deltaw.pictures"
"""The header entry: the first digits of each picture's SHA-256."""
N_DIGITS = 12
MOST = 500
"""Pictures at most that are named, so that headers stay small."""


def pack(digests: Sequence[str]) -> str:
    """The entry for pictures of these SHA-256 digests."""
    return " ".join(sorted({digest[:N_DIGITS] for digest in digests[:MOST]}))


def count(header: Mapping[str, str], digests: Iterable[str]) -> int:
    """How many pictures of these digests the file of this header was trained on, as far as it says."""
    named = set(header.get(ENTRY, "").split())
    return sum(digest[:N_DIGITS] in named for digest in digests)
