"""What a look at each picture of a folder found, remembered while the files stay as they are.

So that the second start on a folder does not decode every picture again. Captions are not remembered: they are read anew.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import PIL

from deltaw import digests
from deltaw.atomic import write_text
from deltaw.data.decode import decode, decoders
from deltaw.errors import DeltawError

CODE_VERSION = "1"
"""Raise it when another picture is made of the same file, or other notes."""
FOLDER = "examined"
"""Of the cache."""


@dataclass(frozen=True)
class Seen:
    """A picture that was decoded whole.

    Args:
        digest: sha256 (hex) of the file's bytes.
        size_px: (width, height), upright.
        notes: what was done to it.
    """

    digest: str
    size_px: tuple[int, int]
    notes: tuple[str, ...]


class Examined:
    """The memory of one folder: one file in the cache, without the name or path of a picture; see `examined`.

    Entries are of pictures that could be decoded; other files are looked at each time. A file counts as the same while its size, times,
    inode and device are (`digests.identity`), and the memory holds for the same decoders alone.
    """

    def __init__(self, folder: Path, root: Path):
        self._folder = folder
        self._file = root / FOLDER / f"{_hidden(os.path.realpath(folder))}.json"
        self._made_by = [CODE_VERSION, PIL.__version__, *sorted(decoders())]
        self._before = self._read()
        self._now: dict[str, list[Any]] = {}

    def recall(self, path: Path) -> Seen | None:
        """What was found in a file, where it is still the same."""
        name = self._name(path)
        entry = self._before.get(name)
        try:
            if entry is None or entry[0] != list(digests.identity(path).values()):
                return None
            (digest, width, height, notes) = entry[1:]
            seen = Seen(str(digest), (int(width), int(height)), tuple(map(str, notes)))
        except (OSError, LookupError, TypeError, ValueError):
            return None
        self._now[name] = entry
        return seen

    def look(self, path: Path) -> Seen:
        """Decodes a picture, within `decode.strict`, and remembers what was found unless it could have changed meanwhile.

        Raises:
            InputError: as `decode` does.
        """
        before = _identity(path)
        decoded = decode(path)
        seen = Seen(decoded.digest, decoded.image.size, decoded.notes)
        if before and digests.is_settled(before) and _identity(path) == before:
            self._now[self._name(path)] = [list(before.values()), seen.digest, *seen.size_px, list(seen.notes)]
        return seen

    def save(self, *, whole: bool) -> None:
        """Writes what is known; a full or read-only cache costs time, nothing else.

        Args:
            whole: every file was asked for, so that those which were not are gone.
        """
        known = self._now if whole else {**self._before, **self._now}
        if known != self._before:
            with contextlib.suppress(DeltawError, OSError):
                write_text(self._file, json.dumps({"made_by": self._made_by, "files": known}))

    def _name(self, path: Path) -> str:
        return _hidden(os.path.relpath(path, self._folder))

    def _read(self) -> dict[str, list[Any]]:
        try:
            found = json.loads(self._file.read_text("utf-8"))
            files = found["files"] if found["made_by"] == self._made_by else {}
        except (OSError, ValueError, LookupError, TypeError, RecursionError):
            return {}
        return files if isinstance(files, dict) else {}


@contextlib.contextmanager
def examined(folder: Path, root: Path | None = None) -> Iterator[Examined]:
    """The memory of a folder of pictures, written at the end, also where the look at them is interrupted.

    Args:
        folder: of pictures.
        root: of the cache; default: the user's.
    """
    memory, whole = Examined(folder, root or digests.default_root()), False
    try:
        yield memory
        whole = True
    finally:
        memory.save(whole=whole)


def _identity(path: Path) -> dict[str, int] | None:
    try:
        return digests.identity(path)
    except OSError:  # which decoding it will say
        return None


def _hidden(name: str) -> str:
    return hashlib.sha256(os.fsencode(name)).hexdigest()[:32]
