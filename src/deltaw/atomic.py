"""Files that appear whole or not at all: written beside their place, synced, then renamed."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from deltaw.errors import DeltawError


@contextlib.contextmanager
def replacing(path: str | Path) -> Iterator[Path]:
    """Gives a temporary path in the same folder; on success it is synced and takes the final name.

    On any failure the previous file stays as it was and the temporary one is removed.

    Raises:
        DeltawError: the folder cannot be written or the disk is full; the numbers are in the message.
    """
    path = Path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=f".{path.name[:80]}.", suffix=".part", dir=path.parent)
        os.close(handle)
    except OSError as error:
        raise _not_writable(path.parent, error) from error
    temporary = Path(name)
    try:
        yield temporary
        temporary.chmod(0o666 & ~_umask())
        _sync(temporary)
        temporary.replace(path)
        _sync(path.parent)
    except OSError as error:
        raise DeltawError(
            f"writing failed ({error.strerror or error})", where=path, expected="room and permission to write",
            advice="free some space or choose another --out; the previous file is untouched",
        ) from error  # fmt: skip
    finally:
        temporary.unlink(missing_ok=True)


def require_writable(path: str | Path) -> None:
    """Tries whether a file could be made where this one will be; folders that are missing are not made yet.

    Raises:
        DeltawError: it cannot.
    """
    folder = next(folder for folder in Path(path).absolute().parents if folder.exists())
    try:
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise _not_writable(folder, error) from error


def _not_writable(folder: Path, error: OSError) -> DeltawError:
    return DeltawError(f"cannot write here ({error.strerror})", where=folder, advice="choose another --out")


def write_bytes(path: str | Path, content: bytes) -> int:
    """Writes a small file atomically; returns its size in bytes."""
    with replacing(path) as temporary, temporary.open("wb") as file:
        file.write(content)
    return len(content)


def write_text(path: str | Path, text: str) -> int:
    """Writes UTF-8 text atomically; returns its size in bytes."""
    return write_bytes(path, text.encode())


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def _sync(path: Path) -> None:
    """Flushes a file's or folder's entry to the disk; folders cannot be synced on every system."""
    handle: int | IO[bytes] = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError:
        if not path.is_dir():
            raise
    finally:
        os.close(handle)
