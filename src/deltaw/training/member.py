"""A further process of a run (`team`): it loads the network and computes what it is told, until it is told no more.

python -m deltaw.training.member     # started by `team.Team`: orders come from standard input, replies go to standard output
"""

from __future__ import annotations

import os
import pickle
import signal
import sys
from collections.abc import Sequence
from typing import IO, Any

import torch
from torch import Tensor, distributed

from deltaw import device as devices
from deltaw import formats
from deltaw.data.feed import Feed
from deltaw.events import silent
from deltaw.families import base_folder, bases
from deltaw.families.base import Base
from deltaw.training import drawing, exhausted, loading, stepping
from deltaw.training.drawing import Row
from deltaw.training.process import Order, Peak, Reply, Task
from deltaw.training.replay import Steps
from deltaw.training.team import leave


class Trainer:
    """Answers to orders that are about the network and its adapters.

    Args:
        task: of this process.
        base: opened.
        device: that it computes on.
    """

    def __init__(self, task: Task, base: Base, device: torch.device):
        settings = task.plan.settings
        dtype = getattr(torch, settings.dtype)
        network = base.denoiser(device, dtype, packed=settings.base_int8)
        self._work, _ = loading.prepared(base, network, Feed([], {}, []), task.plan, device, dtype)
        self._steps = Steps(self._work, silent)
        self._before = ""

    def __call__(self, order: Order) -> Any:
        """The loss of a step's share, whose gradients are added up then, or the network's answers."""
        distributed.broadcast(self._work.flat.values.detach(), 0)
        if order.kind != self._before:  # what one kind of work held would lie beside the other's
            self._steps.make_room()
            devices.trim()
            self._before = order.kind
        return self._answer(*order.content) if order.kind == "answer" else float(self._steps.of(order.content))

    def add_up(self) -> None:
        """Adds the gradients to the main process's."""
        distributed.reduce(self._work.flat.grads, 0)

    @torch.no_grad()
    def _answer(self, x: Tensor, times: Tensor, text: Tensor) -> Tensor:
        return stepping.answer(self._work, x, times, text).cpu()


def main() -> None:
    """Reads the task, then orders until there are no more; an error is a reply, and the end."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    orders, replies = sys.stdin.buffer, os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # whatever a library prints is no reply
    try:
        _serve(orders, replies)
    except (EOFError, BrokenPipeError):  # the main process is gone
        return
    except Exception as error:  # noqa: BLE001 - whatever it is, the main process has to hear of it
        first = str(error).strip().splitlines() or [type(error).__name__]
        _say(replies, Reply(failed=first[0][:300], out_of_memory=exhausted.ran_out(error)))


def _serve(orders: IO[bytes], replies: IO[bytes]) -> None:
    task: Task = pickle.load(orders)
    torch.set_num_threads(task.n_threads)
    device = task.settle()
    base = bases.opened(base_folder.read(task.base))
    trainer = Trainer(task, base, device)
    _say(replies, Reply())
    task.join()
    order: Order | None
    with devices.kept():
        while (order := pickle.load(orders)) is not None and order.kind != "draw":
            _say(replies, Reply(trainer(order)))
            if order.kind == "gradients":
                trainer.add_up()
    if order is not None:
        del trainer  # drawing needs the room
        devices.give_back()
        _say(replies, Reply(_drawn(task, base, device, order.content)))
        pickle.load(orders)
    _say(replies, Reply(Peak(task.device, devices.peak_rss_bytes(), devices.peak_device_bytes(device))))
    leave()


def _drawn(task: Task, base: Base, device: torch.device, rows: Sequence[Row]) -> list[Tensor]:
    if not rows:
        return []
    painter = drawing.opened(base, device, task.plan.settings, rows[0].recipes)
    shapes = formats.shapes_of(task.base)
    return [drawing.latents(painter, row, shapes) for row in rows]


def _say(replies: IO[bytes], reply: Reply) -> None:
    pickle.dump(reply, replies)
    replies.flush()


if __name__ == "__main__":
    main()
