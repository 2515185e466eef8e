"""SHA-256 of large files, remembered while the files stay as they are, and where what is remembered lives."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import time
from pathlib import Path

import platformdirs

from deltaw.atomic import write_text
from deltaw.errors import DeltawError

SETTLED_S = 2.0
"""A file younger than this is not remembered: it could change once more within the clock's grain."""


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
    name = hashlib.sha256(os.fsencode(path.resolve())).hexdigest()
    memory = (root or default_root()) / "digests" / f"{name}.json"
    before = _identity(path)
    if (known := _recall(memory, before)) is not None:
        return known
    with path.open("rb") as handle:
        digest = hashlib.file_digest(handle, "sha256").hexdigest()
    settled = time.time_ns() - max(before["mtime_ns"], before["ctime_ns"]) > SETTLED_S * 1e9
    if settled and _identity(path) == before:
        with contextlib.suppress(DeltawError, OSError):  # a full or read-only cache costs time, nothing else
            write_text(memory, json.dumps({**before, "sha256": digest}))
    return digest


def _identity(path: Path) -> dict[str, int]:
    found = path.stat()
    return {
        "size": found.st_size, "mtime_ns": found.st_mtime_ns, "ctime_ns": found.st_ctime_ns, "inode": found.st_ino,
        "device": found.st_dev,
    }  # fmt: skip


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
