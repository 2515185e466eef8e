"""Other processes that compute a share of every step, one on each further GPU: the main one deals out and adds up.

Pictures, optimizer, questions and files are the main process's alone. Before each piece of work the others are given the trained
numbers as they stand (broadcast); what they add to the gradients is added to the main one's (reduce). So a step is the same however many
compute it, but for rounding: synchronous data-parallel training (Li et al. 2020, arXiv 2006.15704).
"""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, distributed

from deltaw import device as devices
from deltaw.training.plan import Plan
from deltaw.training.process import Kind, Order, Other, Peak, Task


class Team:
    """The other processes of a run.

    Args:
        task: as for the main process.
        places: the devices of the others.
    """

    def __init__(self, task: Task, places: Sequence[torch.device]):
        self._task = task
        self._others: list[Other] = []
        self._joined = False
        try:
            for rank, place in enumerate(places, 1):
                told = replace(task, device=str(place), rank=rank)
                self._others.append(Other(told))
                self._others[-1].send(told)
        except BaseException:
            self.end()
            raise

    @classmethod
    @contextlib.contextmanager
    def of(cls, base: Path, made: Plan, device: torch.device) -> Iterator[Team | None]:
        """Starts the processes that a plan asks for beside this one, None where it asks for none; they end with the context.

        They load the network meanwhile; `join` waits for that.

        Args:
            base: the base's folder.
            made: the plan.
            device: of this process.
        """
        n = made.settings.processes
        if n == 1:
            yield None
            return
        own, *places = devices.several(device, n)
        n_threads = max(1, torch.get_num_threads() // n)
        alone = replace(made, values={}, captions=(), sizes_px=(), training=(), held_out=(), notes=(),
                        sampler=replace(made.sampler, buckets={}))  # fmt: skip
        with tempfile.TemporaryDirectory(prefix="deltaw-") as folder:
            found = cls(Task(base, alone, str(own), 0, n, n_threads, Path(folder) / "meeting"), places)
            try:
                yield found
            finally:
                found.end()

    @property
    def n(self) -> int:
        """All processes, this one included."""
        return self._task.n

    @property
    def places(self) -> list[str]:
        """Their devices."""
        return [self._task.device, *(other.place for other in self._others)]

    def join(self) -> None:
        """Waits until all have loaded the network.

        Raises:
            MemoryError, DeltawError: one could not.
        """
        self.replies()
        with self._named():
            self._task.join()
        self._joined = True

    def begin(self, kind: Kind, shares: Sequence[Any], values: Tensor | None = None) -> None:
        """Has the others begin with their shares; `replies` waits for what they find.

        Args:
            kind: of `Order`.
            shares: one for each of the others.
            values: the trained numbers, which they are given; files are drawn with, not these.
        """
        for other, share in zip(self._others, shares, strict=True):
            other.send(Order(kind, share))
        if values is not None:
            with self._named():
                distributed.broadcast(values, 0)

    @contextlib.contextmanager
    def cores(self) -> Iterator[None]:
        """Within the context this process computes on its own part of a CPU's cores, as the others do."""
        n_threads = torch.get_num_threads()
        if torch.device(self._task.device).type == "cpu":
            torch.set_num_threads(self._task.n_threads)
        try:
            yield
        finally:
            torch.set_num_threads(n_threads)

    def replies(self) -> list[Any]:
        """What the others found; waits for them.

        Raises:
            MemoryError: the memory of one ran out.
            DeltawError: one failed otherwise, or is gone.
        """
        return [other.receive() for other in self._others]

    def add_up(self, grads: Tensor) -> None:
        """Adds the others' gradients to those of this process, in place."""
        with self._named():
            distributed.reduce(grads, 0)

    @contextlib.contextmanager
    def _named(self) -> Iterator[None]:
        """Says which process is gone where what they do together fails for it."""
        try:
            yield
        except RuntimeError as error:
            for other in self._others:
                if other.has_ended():
                    raise other.gone() from error
            raise

    def dismiss(self) -> tuple[Peak, ...]:
        """Ends the others, whose work is done; what memory they took."""
        for other in self._others:
            other.send(None)
        peaks = tuple(self.replies())
        leave()  # all do so together, as NCCL wants it
        self._joined = False
        for other in self._others:
            other.end(at_once=False)
        self._others.clear()
        return peaks

    def end(self) -> None:
        """Ends what is left of it, at once: the others hold nothing that is not here too."""
        for other in self._others:
            other.end(at_once=True)
        self._others.clear()
        if self._joined:
            self._joined = False
            leave(alone=True)


def leave(*, alone: bool = False) -> None:
    """Leaves the group; `alone` where the others are gone without, for whom NCCL would wait otherwise."""
    if alone and distributed.get_backend() == "nccl":
        distributed.distributed_c10d._abort_process_group()  # the one way that waits for nobody
    else:
        distributed.destroy_process_group()
