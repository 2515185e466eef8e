"""Writing in the background: what is made next need not wait for the disk."""

from __future__ import annotations

import collections
import contextlib
import os
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import IO

_CHUNK_BYTES = 1 << 20
_HELD_BYTES = 1 << 24


class Writer:
    """Fills a file from its beginning while more of it is made: one thread writes, another copies from other files.

    Nobody else may move the position in those.
    """

    def __init__(self, puts: _Lane, copies: _Lane):
        self._puts, self._copies, self._end = puts, copies, 0

    @classmethod
    @contextlib.contextmanager
    def of(cls, path: Path) -> Iterator[Writer]:
        """Gives one that has written everything when it is left, or raises what writing met."""
        with _Lane.of(path) as puts, _Lane.of(path) as copies:
            yield cls(puts, copies)

    def put(self, content: memoryview) -> None:
        """Appends bytes, which nobody may change from now on; waits while too many of them are held."""
        self._puts.submit(self._end, len(content), lambda file: write_all(file, content))
        self._end += len(content)

    def copy(self, n_bytes: int, copy_to: Callable[[IO[bytes]], None]) -> None:
        """Appends bytes of another file, which `copy_to` writes where the given file stands."""
        self._copies.submit(self._end, 0, copy_to)
        self._end += n_bytes


class _Lane:
    """A thread that writes to places of a file, in the order in which it is asked to."""

    def __init__(self, file: IO[bytes], pool: ThreadPoolExecutor):
        self._file, self._pool = file, pool
        self._waiting: collections.deque[tuple[int, Future[None]]] = collections.deque()
        self._n_held = 0

    @classmethod
    @contextlib.contextmanager
    def of(cls, path: Path) -> Iterator[_Lane]:
        """Gives one that is done with everything when it is left; what failed is raised, by then at the latest."""
        with path.open("r+b", buffering=0) as file, ThreadPoolExecutor(1) as pool:
            lane = cls(file, pool)  # type: ignore[arg-type]  # a FileIO writes bytes as well
            try:
                yield lane
                lane._wait(-1)
            finally:
                pool.shutdown(cancel_futures=True)

    def submit(self, begin: int, n_held: int, write: Callable[[IO[bytes]], None]) -> None:
        """Has something written from `begin` on, for which `n_held` bytes of memory are held until it is done."""
        self._waiting.append((n_held, self._pool.submit(self._at, begin, write)))
        self._n_held += n_held
        self._wait(_HELD_BYTES)

    def _at(self, begin: int, write: Callable[[IO[bytes]], None]) -> None:
        self._file.seek(begin)
        write(self._file)

    def _wait(self, n_most: int) -> None:
        """Waits for the oldest until no more than this many bytes are held."""
        while self._waiting and (self._n_held > n_most or self._waiting[0][1].done()):
            n_held, done = self._waiting.popleft()
            done.result()
            self._n_held -= n_held


@contextlib.contextmanager
def syncing(file: IO[bytes]) -> Iterator[None]:
    """Brings what is written to the disk while more is being made, so that the last sync has little left to do.

    Raises:
        OSError: the disk refused something; the system tells that once a descriptor, so it must not be lost here.
    """
    written = threading.Event()

    def keep_syncing() -> None:
        while not written.wait(0.05):
            os.fsync(file.fileno())

    with ThreadPoolExecutor(1) as pool:
        syncing = pool.submit(keep_syncing)
        try:
            yield
        finally:
            written.set()
        syncing.result()


def write_all(file: IO[bytes], content: memoryview) -> None:
    """Writes in pieces that stay in the processor's cache; one call for hundreds of megabytes is several times slower."""
    done = 0
    while done < len(content):
        done += file.write(content[done : done + _CHUNK_BYTES])
