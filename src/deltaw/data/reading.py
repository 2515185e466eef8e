"""Pictures read on a few threads at once, in order, no further ahead than their memory allows."""

from __future__ import annotations

import itertools
import os
from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

from deltaw.data.decode import strict

T = TypeVar("T")
R = TypeVar("R")

MAX_THREADS = 4
"""Each may hold a decoded picture of `decode.LARGE_PIXELS`."""
AHEAD = 4
"""Results that may wait for each thread."""


def ahead(work: Callable[[T], R], items: Iterable[T], *, in_turns: bool = False) -> Generator[R, None, None]:
    """`work` of every item, in order; Pillow decodes and scales outside Python's lock, so that threads help.

    To be closed at once where its user stops early (`contextlib.closing`): Pillow is strict for as long as it lives.

    Args:
        work: of one item, within `decode.strict`; what it raises is raised here, when its turn comes.
        items: what there is to do.
        in_turns: the threads rest while their user does something with what they have done. For users that need all cores themselves:
            encoding pictures on a CPU beside them takes a fifth longer than without threads.
    """
    n_threads = min(MAX_THREADS, os.cpu_count() or 1)
    n_ahead = AHEAD * n_threads
    pool = ThreadPoolExecutor(n_threads, thread_name_prefix="pictures")
    begun: deque[Future[R]] = deque()
    left = iter(items)
    try:
        with strict():
            while True:
                begun.extend(pool.submit(work, item) for item in itertools.islice(left, n_ahead - len(begun)))
                if not begun:
                    return
                n_given = len(begun) if in_turns else 1
                yield from [begun.popleft().result() for _ in range(n_given)]
    finally:
        pool.shutdown(cancel_futures=True)
