"""SHA-256 of large files, remembered while the files stay as they are, and where what is remembered lives."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import threading
import time
from collections.abc import Iterable
from pathlib import Path

import platformdirs

from deltaw.atomic import write_text
from deltaw.errors import DeltawError

SETTLED_S = 2.0
"""A file younger than this is not remembered: it could change once more within the clock's grain."""
CHUNK_BYTES = 1 << 23
"""Read at a time: after each piece a thread in the background waits until others let it go on."""
_AHEAD: dict[Path, threading.Thread] = {}


def default_root() -> Path:
    """`$DELTAW_CACHE`, else the system's folder for caches; never beside the user's pictures."""
    return Path(os.environ.get("DELTAW_CACHE") or platformdirs.user_cache_dir("deltaw"))


def of_file(path: Path, root: Path | None = None) -> str:
    """SHA-256 of a file in hexadecimal, from memory where its size, times, inode and device are the same.

    The change time is among them, which no program can set, so a file that was replaced and given its old
    modification time is read again. The path itself is not stored.

    Args:
        path: the file.
        root: folder of the memory; default: beside the cache of encoded pictures.

    Raises:
        OSError: the file cannot be read.
    """
    resolved = path.resolve()
    if (reader := _AHEAD.get(resolved)) is not None and reader is not threading.current_thread():
        reader.join()  # it remembers what it finds
        _AHEAD.pop(resolved, None)
    name = hashlib.sha256(os.fsencode(resolved)).hexdigest()
    memory = (root or default_root()) / "digests" / f"{name}.json"
    before = identity(path)
    if (known := _recall(memory, before)) is not None:
        return known
    digest = _read(path)
    if is_settled(before) and identity(path) == before:
        with contextlib.suppress(DeltawError, OSError):  # a full or read-only cache costs time, nothing else
            write_text(memory, json.dumps({**before, "sha256": digest}))
    return digest


def ahead(paths: Iterable[Path]) -> None:
    """Has the digests of files found in the background, so that `of_file` will know them or has less to wait for.

    What cannot be read is `of_file`'s to say. The threads do not keep the process from ending.
    """

    def look(path: Path) -> None:
        with contextlib.suppress(OSError):
            of_file(path)

    for path in paths:
        reader = threading.Thread(target=look, args=(path,), daemon=True)
        _AHEAD[path.resolve()] = reader
        reader.start()


def _read(path: Path) -> str:
    found, room = hashlib.sha256(), memoryview(bytearray(CHUNK_BYTES))
    with path.open("rb", buffering=0) as file:
        while n := file.readinto(room):
            found.update(room[:n])
    return found.hexdigest()


def identity(path: Path) -> dict[str, int]:
    """What tells that a file is the same and was not written to; the change time is of it, which no program can set.

    Raises:
        OSError: there is no such file.
    """
    found = path.stat()
    return {
        "size": found.st_size, "mtime_ns": found.st_mtime_ns, "ctime_ns": found.st_ctime_ns, "inode": found.st_ino,
        "device": found.st_dev,
    }  # fmt: skip


def is_settled(found: dict[str, int]) -> bool:
    """Whether a file whose `identity` was found is old enough that a change of it would show there."""
    return time.time_ns() - max(found["mtime_ns"], found["ctime_ns"]) > SETTLED_S * 1e9


def _recall(memory: Path, identity: dict[str, int]) -> str | None:
    """The remembered digest, or None where there is none of this very file or the entry is damaged."""
    try:
        entry = json.loads(memory.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    if not isinstance(entry, dict) or {k: entry.get(k) for k in identity} != identity:
        return None
    digest = entry.get("sha256")
    return digest if isinstance(digest, str) and len(digest) == 64 else None
