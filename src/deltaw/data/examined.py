"""What a look at each picture of a folder found, remembered while the files stay as they are.

So that the second start on a folder does not decode every picture again. Captions are not remembered: they are read anew.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import PIL

from deltaw import digests
from deltaw.data.decode import decode, decoders
from deltaw.data.remembered import Memory, hidden, remembering

CODE_VERSION = "1"
"""Raise it when another picture is made of the same file, or other notes."""
KIND = "examined"


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


@dataclass(frozen=True)
class Examined:
    """The pictures of a folder that were decoded before; see `examined`.

    Entries are of pictures that could be decoded; other files are looked at each time. A file counts as the same while its size, times,
    inode and device are (`digests.identity`), and the memory holds for the same decoders alone.
    """

    folder: Path
    memory: Memory

    def recall(self, path: Path) -> Seen | None:
        """What was found in a file, where it is still the same."""
        name = self._name(path)
        entry = self.memory[name]
        try:
            if entry is None or entry[0] != list(digests.identity(path).values()):
                return None
            (digest, width, height, notes) = entry[1:]
            seen = Seen(str(digest), (int(width), int(height)), tuple(map(str, notes)))
        except (OSError, LookupError, TypeError, ValueError):
            return None
        self.memory.keep(name, entry)
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
            entry = [list(before.values()), seen.digest, *seen.size_px, list(seen.notes)]
            self.memory.keep(self._name(path), entry)
        return seen

    def _name(self, path: Path) -> str:
        return hidden(os.path.relpath(path, self.folder))


@contextlib.contextmanager
def examined(folder: Path) -> Iterator[Examined]:
    """What is known of a folder's pictures, and will be; kept at the end, also where the look at them is interrupted."""
    with remembering(KIND, folder, [CODE_VERSION, PIL.__version__, *sorted(decoders())]) as memory:
        yield Examined(folder, memory)


def _identity(path: Path) -> dict[str, int] | None:
    with contextlib.suppress(OSError):  # which decoding it will say
        return digests.identity(path)
    return None
