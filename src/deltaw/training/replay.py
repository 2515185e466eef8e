"""Training steps as CUDA graphs: what one launches is recorded once for each shape of (micro-)batch and started as a whole from then on.

A step of Stable Diffusion XL launches some five thousand kernels of ten microseconds each, and Python, autograd and the driver
take longer to launch them than a fast GPU to compute them (Gray 2019, "Getting started with CUDA graphs").
"""

from __future__ import annotations

import gc
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from deltaw import device as devices
from deltaw.events import Note, Tell
from deltaw.training import exhausted, stepping
from deltaw.training.stepping import Batch, Work

MOST_GRAPHS = 16
"""Shapes of batches that are recorded; each holds its list of launches, some tens of megabytes."""


def n_first(device: torch.device) -> int:
    """Steps of one shape of batch before one takes what all later ones take."""
    return 3 if device.type == "cuda" else 1


def _strictness() -> Literal["global", "thread_local"]:
    """Which threads may disturb a recording: NCCL's own, which looks after a group's work, asks events all the time."""
    joined = torch.distributed.is_available() and torch.distributed.is_initialized()
    return "thread_local" if joined else "global"


@dataclass(frozen=True)
class _Recorded:
    graph: Any  # a torch.cuda.CUDAGraph, a class that a build without CUDA lacks
    read: Batch
    loss: Tensor


class Steps:
    """Losses and gradients of batches, one after another; on an NVIDIA GPU each shape's third step and all after it are replayed.

    The first step of a shape lets libraries choose their kernels, the second is recorded. Where that fails, it is said once and
    the steps go on being launched one kernel at a time.

    Args:
        work: whose gradients are computed.
        tell: hears why nothing is recorded.
    """

    def __init__(self, work: Work, tell: Tell):
        self._work, self._tell = work, tell
        self._recorded: dict[tuple[torch.Size, ...], _Recorded] = {}
        self._seen: set[tuple[torch.Size, ...]] = set()
        self._pool: Any = None
        self._pool_bytes = 0
        self._records = work.device.type == "cuda"
        self._stream = torch.cuda.Stream(work.device) if self._records else None

    def __call__(self, batch: Batch) -> Tensor:
        """The loss of a batch on the CPU, as a scalar that may still be computed, as the gradients in `work.flat`.

        With other processes both are those of a share until `gathered` has added up all.
        """
        work = self._work
        parts = batch.parts(work.plan.settings.micro_batch)
        if work.team is None:
            return self.of(parts)
        each = len(parts) // work.team.n
        mine, *theirs = (parts[i : i + each] for i in range(0, len(parts), each))
        work.team.begin("gradients", theirs, work.flat.values.detach())
        with work.team.cores():
            return self.of(mine)

    def of(self, parts: Sequence[Batch]) -> Tensor:
        """The same of the parts of a step that are computed in this process."""
        if self._stream is None:
            return stepping.gradients(self._work, parts, self._launched)
        current = torch.cuda.current_stream(self._work.device)
        self._stream.wait_stream(current)
        with torch.cuda.stream(self._stream):
            loss = stepping.gradients(self._work, parts, self._on_gpu)
        current.wait_stream(self._stream)
        return loss

    def gathered(self, loss: Tensor) -> Tensor:
        """The loss of the whole step, of which `loss` is what this process computed; the gradients are the whole's too.

        Raises:
            MemoryError, DeltawError: another process failed.
        """
        team = self._work.team
        if team is None:
            return loss
        others = sum(team.replies())
        team.add_up(self._work.flat.grads)
        return loss + others

    def _launched(self, part: Batch) -> Tensor:
        return stepping.add_gradients(self._work, part)

    def _on_gpu(self, batch: Batch) -> Tensor:
        """The loss of a part, whose gradients are added to those there are."""
        shape = tuple(t.shape for t in batch.tensors())
        if shape not in self._recorded and shape in self._seen and len(self._recorded) < MOST_GRAPHS and self._records:
            self._record(shape, batch)
        recorded = self._recorded.get(shape)
        self._seen.add(shape)
        if recorded is None:
            return self._launched(batch)
        for room, new in zip(recorded.read.tensors(), batch.tensors(), strict=True):
            room.copy_(new)
        recorded.graph.replay()
        return recorded.loss.clone()  # the next replay writes over it

    def _record(self, shape: tuple[torch.Size, ...], batch: Batch) -> None:
        """Records the step of one shape; all shapes share the memory of their activations, since one runs at a time."""
        devices.give_back()  # what the steps before held would lie beside the recorded ones' memory
        before = torch.cuda.memory_reserved(self._work.device)
        read = batch.on(self._work.device, self._work.dtype)
        graph = torch.cuda.CUDAGraph()
        try:
            with torch.cuda.graph(graph, pool=self._pool, stream=self._stream, capture_error_mode=_strictness()):
                loss = self._launched(read)
        except RuntimeError as error:
            self._records = False
            why = "memory is short" if exhausted.ran_out(error) else str(error).strip().splitlines()[0][:200]
            self._tell(Note(f"steps are not recorded as CUDA graphs, and may take longer for it: {why}"))
            self.forget()
            return
        self._pool = graph.pool()
        self._pool_bytes += torch.cuda.memory_reserved(self._work.device) - before
        self._recorded[shape] = _Recorded(graph, read, loss)

    def make_room(self) -> None:
        """Before something else that may need as much memory as a step: the recorded ones are forgotten if that is not free."""
        if self._recorded and devices.available_bytes(self._work.device)[0] < self._pool_bytes:
            self.forget()

    def forget(self) -> None:
        """Gives the recorded steps' memory back; each shape's next step is recorded anew."""
        self._recorded.clear()
        self._pool, self._pool_bytes = None, 0
        gc.collect()
        devices.trim()
