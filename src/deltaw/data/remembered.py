"""What is known of a folder's pictures from one start to the next: one small file a folder in the cache, safe to delete at any time."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from deltaw import digests
from deltaw.atomic import write_text
from deltaw.errors import DeltawError


class Memory:
    """Entries by name, as JSON has them; see `remembering`. Whether one still holds, and is whole, its reader finds out."""

    def __init__(self, file: Path, made_by: list[str]):
        self._file, self._made_by = file, made_by
        self._before = self._read()
        self._now: dict[str, Any] = {}

    def __getitem__(self, name: str) -> Any:
        """What was known of `name`, or None."""
        return self._before.get(name)

    def keep(self, name: str, entry: Any) -> None:
        """Remembers an entry; what is neither kept nor kept again is forgotten at the end."""
        self._now[name] = entry

    def save(self, *, whole: bool) -> None:
        """Writes what is known; a full or read-only cache costs time, nothing else.

        Args:
            whole: all was gone through, so that what was not kept is gone.
        """
        known = self._now if whole else {**self._before, **self._now}
        if known != self._before:
            with contextlib.suppress(DeltawError, OSError):
                write_text(self._file, json.dumps({"made_by": self._made_by, "known": known}))

    def _read(self) -> dict[str, Any]:
        try:
            found = json.loads(self._file.read_text("utf-8"))
            known = found["known"] if found["made_by"] == self._made_by else {}
        except (OSError, ValueError, LookupError, TypeError, RecursionError):
            return {}
        return known if isinstance(known, dict) else {}


@contextlib.contextmanager
def remembering(kind: str, folder: Path, made_by: list[str]) -> Iterator[Memory]:
    """The memory of a folder, written at the end, also where what it is for is interrupted.

    Args:
        kind: of what is remembered, the cache's folder of it.
        folder: of pictures; neither its name nor its path is kept.
        made_by: what entries depend on beside the pictures; others than those they were made by are not read.
    """
    file = digests.default_root() / kind / f"{hidden(os.path.realpath(folder))}.json"
    memory, whole = Memory(file, made_by), False
    try:
        yield memory
        whole = True
    finally:
        memory.save(whole=whole)


def hidden(name: str) -> str:
    """A name that tells nothing and stands for `name` alone."""
    return hashlib.sha256(os.fsencode(name)).hexdigest()[:32]
