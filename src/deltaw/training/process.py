"""Another process of a run: what it is told, how it is spoken to through its standard input and output, and how it ends."""

from __future__ import annotations

import contextlib
import os
import pickle
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import IO, Any, Literal

import torch
from torch import distributed

from deltaw import device as devices
from deltaw.errors import DeltawError
from deltaw.training.plan import Plan

PATIENCE = timedelta(minutes=2)
"""For a broadcast or a sum, which all begin within a step's differences of each other."""
LOOPBACK = {"linux": "lo", "darwin": "lo0"}
"""The network interface of a machine to itself, which is the only one that gloo has to find."""
MOMENT_S = 1
"""Seconds after which a process whose end of a connection is closed has ended too."""
LEAVING_S = 10
"""Seconds that a process has to end by itself."""
Kind = Literal["gradients", "answer", "draw"]
"""Pieces of work, see `Order`."""


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


class Other:
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
        self._waited()
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
        code = self._waited()
        self._said.seek(0)
        last = self._said.read().decode("utf-8", "replace").strip().splitlines()[-1:]
        how = f"signal {-code}" if code < 0 else f"exit code {code}"
        return DeltawError(
            f"{self.name}, ended by itself ({how})", where="processes", expected="a process that lives as long as the run",
            advice="; ".join((*last, "the system may have ended it for want of memory; take --set processes=1")),
        )  # fmt: skip

    def _waited(self) -> int:
        """Its exit code; one that does not end by itself is ended."""
        try:
            return self._process.wait(LEAVING_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            return self._process.wait()


def _environment(task: Task) -> dict[str, str]:
    """This process's, with what it found its modules by."""
    found = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    if torch.device(task.device).type == "cpu":
        found["OMP_NUM_THREADS"] = str(task.n_threads)
    return found
