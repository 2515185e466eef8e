"""Other processes that compute a share of every step, one on each further GPU: the main one deals out and adds up.

Pictures, optimizer, questions and files are the main process's alone. Before each piece of work the others are given the trained
numbers as they stand (broadcast); what they add to the gradients is added to the main one's (reduce). So a step is the same however many
compute it, but for rounding: synchronous data-parallel training (Li et al. 2020, arXiv 2006.15704).
"""

from __future__ import annotations

import contextlib
import os
import pickle
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path
from typing import IO, Any, Literal

import torch
from torch import Tensor, distributed

from deltaw import device as devices
from deltaw.errors import DeltawError
from deltaw.training.plan import Plan

PATIENCE = timedelta(minutes=2)
"""For a broadcast or a sum, which all begin within a step's differences of each other."""
MOMENT_S = 1
"""Seconds after which a process whose end of a connection is closed has ended too."""
LEAVING_S = 10
"""Seconds that a process has to end by itself."""
LOOPBACK = {"linux": "lo", "darwin": "lo0"}
"""The network interface of a machine to itself, which is the only one that gloo has to find."""


Kind = Literal["gradients", "answer", "draw"]


@dataclass(frozen=True)
class Task:
    """What a process is told at its start.

    Args:
        base: the base's folder.
        plan: of the run, without its pictures.
        device: that it computes on.
        rank: its number among all, the main one's being 0; `n`: how many they are.
        n_threads: that it computes on, on a CPU.
        store: a file through which all find each other.
    """

    base: Path
    plan: Plan
    device: str
    rank: int
    n: int
    n_threads: int
    store: Path

    def settle(self) -> torch.device:
        """The device, which is the process's own from now on: what names no GPU takes this one."""
        device, _ = devices.choose(self.device)
        if device.type == "cuda":
            torch.cuda.set_device(device)
        return device

    def join(self) -> None:
        """Joins the group of all processes; waits until all have."""
        device = self.settle()
        if sys.platform in LOOPBACK:
            os.environ.setdefault("GLOO_SOCKET_IFNAME", LOOPBACK[sys.platform])
        backend = "nccl" if device.type == "cuda" and distributed.is_nccl_available() else "gloo"
        distributed.init_process_group(
            backend, store=distributed.FileStore(str(self.store), self.n), rank=self.rank, world_size=self.n,
            timeout=PATIENCE, device_id=device if backend == "nccl" else None,
        )  # fmt: skip


@dataclass(frozen=True)
class Order:
    """A piece of work: "gradients" of a list of batches, the network's "answer" to (x, times, text), or the rows to "draw", at last."""

    kind: Kind
    content: Any


@dataclass(frozen=True)
class Reply:
    """What came of an order; `failed` says why nothing did."""

    content: Any = None
    failed: str = ""
    out_of_memory: bool = False


@dataclass(frozen=True)
class Peak:
    """The most memory that a process held, and of its GPU."""

    device: str
    rss_bytes: int
    device_bytes: int


class _Member:
    """One of the other processes, spoken to through its standard input and output.

    Args:
        task: that it is given.
    """

    def __init__(self, task: Task):
        self.place = task.device
        self.name = f"process {task.rank + 1} of {task.n}, on {task.device}"
        self._said: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115 - closed by `end`
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-m", "deltaw.training.member"], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            stderr=self._said, start_new_session=True, env=_environment(task),  # Ctrl+C is the main process's to heed
        )  # fmt: skip

    def send(self, order: object) -> None:
        """Tells it what to do.

        Raises:
            DeltawError: it is gone.
        """
        assert self._process.stdin is not None
        try:
            pickle.dump(order, self._process.stdin)
            self._process.stdin.flush()
        except OSError as error:
            raise self.gone() from error

    def receive(self) -> Any:
        """What it found; waits for it.

        Raises:
            MemoryError: its memory ran out.
            DeltawError: it failed otherwise, or is gone.
        """
        assert self._process.stdout is not None
        try:
            reply: Reply = pickle.load(self._process.stdout)
        except (EOFError, pickle.UnpicklingError) as error:
            raise self.gone() from error
        if reply.out_of_memory:
            raise MemoryError(f"{self.name}: {reply.failed}")
        if reply.failed:
            raise DeltawError(
                f"{self.name}, failed: {reply.failed}", where="processes", advice="take --set processes=1"
            )
        return reply.content

    def end(self, *, at_once: bool) -> None:
        """Waits until it has ended, or ends it."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        with contextlib.suppress(OSError):
            self._process.stdin.close()
        if at_once:
            self._process.kill()
        try:
            self._process.wait(LEAVING_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process.stdout.close()
        self._said.close()

    def has_ended(self) -> bool:
        """Whether it is gone, or will be in a moment."""
        try:
            return self._process.wait(MOMENT_S) is not None
        except subprocess.TimeoutExpired:
            return False

    def gone(self) -> DeltawError:
        """What to say of one that has ended."""
        code = self._process.wait()
        self._said.seek(0)
        last = self._said.read().decode("utf-8", "replace").strip().splitlines()[-1:]
        how = f"signal {-code}" if code < 0 else f"exit code {code}"
        return DeltawError(
            f"{self.name}, ended by itself ({how})", where="processes", expected="a process that lives as long as the run",
            advice="; ".join((*last, "the system may have ended it for want of memory; take --set processes=1")),
        )  # fmt: skip


class Team:
    """The other processes of a run.

    Args:
        task: as for the main process.
        places: the devices of the others.
    """

    def __init__(self, task: Task, places: Sequence[torch.device]):
        self._task = task
        self._others: list[_Member] = []
        self._joined = False
        try:
            for rank, place in enumerate(places, 1):
                told = replace(task, device=str(place), rank=rank)
                self._others.append(_Member(told))
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


def _environment(task: Task) -> dict[str, str]:
    """This process's, with what it found its modules by."""
    found = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    if torch.device(task.device).type == "cpu":
        found["OMP_NUM_THREADS"] = str(task.n_threads)
    return found
