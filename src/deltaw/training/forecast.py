"""What a run will take, said before it starts: memory by phase, disk, and each figure's reason."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from deltaw import device as devices
from deltaw.data import feed
from deltaw.data.cache import default_root
from deltaw.families import blueprint
from deltaw.families.base import Base
from deltaw.training import asking, memory, optim
from deltaw.training.graph import Graph, Job, recalled
from deltaw.training.memory import Need
from deltaw.training.plan import Plan

PAGES_BYTES = 5_000_000
"""Report, log and configuration, generously."""


@dataclass(frozen=True)
class Forecast:
    """What was predicted.

    Args:
        job: what the memory depends on.
        graph: of the run's pieces of work.
        memory: by phase, beyond `held_bytes`.
        held_bytes: what the process holds before the run, on a GPU nothing; `libraries_bytes`: what code and kernels add to it.
        beside_bytes: what the run's other processes hold of the same memory.
        disk: (place, bytes, reason): "run" is the result folder, "cache" what encoders made.
    """

    job: Job
    graph: Graph
    memory: tuple[Need, ...]
    held_bytes: int
    libraries_bytes: int
    beside_bytes: int
    disk: tuple[tuple[str, int, str], ...]

    @property
    def peak_bytes(self) -> int:
        """What a process monitor will show at the most: of the machine's memory, or of the GPU's, where no file is mapped."""
        return self.held_bytes + self.libraries_bytes + max(self._seen_bytes(need) for need in self.memory)

    @property
    def needed_bytes(self) -> int:
        """What has to be free at the most, beyond what the process holds already."""
        return self.libraries_bytes + self.beside_bytes + max(need.n_bytes for need in self.memory)

    @property
    def on_gpu(self) -> bool:
        """Whether the memory is a GPU's."""
        return self.job.device.type == "cuda"

    @property
    def tightest(self) -> Need:
        """The phase that decides whether the run fits."""
        return max(self.memory, key=lambda need: need.n_bytes)

    @property
    def at_a_time(self) -> int:
        """Questions that are asked at a time."""
        return memory.at_a_time(self.graph, self.job)

    @property
    def drawn_at_a_time(self) -> int:
        """Pictures of the sheet that are drawn at a time."""
        return memory.drawn_at_a_time(self.graph, self.job)

    def disk_bytes(self, place: str) -> int:
        """Bytes that one place needs."""
        return sum(n_bytes for where, n_bytes, _ in self.disk if where == place)

    def rows(self) -> tuple[tuple[str, str, str], ...]:
        """(what, how much, why) for people."""
        base = self.held_bytes + self.libraries_bytes
        shown = [(f"memory: {n.phase}", memory.size(base + self._seen_bytes(n)), self._why(n)) for n in self.memory]
        program = "torch's code and work space on the GPU" if self.on_gpu else "Python, torch and their code"
        first = ("memory: program", memory.size(base), f"{program}; counted in all that follow")
        if self.beside_bytes:
            each = "a program, a network and a step each; counted in none of these"
            shown.append(("memory: other processes", memory.size(self.beside_bytes), each))
        return (first, *shown, *((f"disk: {where}", f"{n / 1e6:.1f} MB", why) for where, n, why in self.disk))

    def _seen_bytes(self, need: Need) -> int:
        return need.n_bytes if self.on_gpu else need.seen_bytes

    def _why(self, need: Need) -> str:
        mapped = (
            f"; pages of weight files {memory.size(need.mapped_bytes)}, which the system takes back when it needs them"
        )
        return need.reason + (mapped if need.mapped_bytes > 1e7 and not self.on_gpu else "")


def make(base: Base, made: Plan, **changes: Any) -> Forecast:
    """Predicts a planned run, or one with changes of its `Job`.

    Raises:
        UsageError: the targets match nothing in the base, or the rank is too large.
    """
    work = memory.job(base, made, **changes)
    graph = recalled(blueprint.of(base.folder.configs), work, default_root())
    read = memory.feed_bytes(base, made)
    held = 0 if work.device.type == "cuda" else devices.rss_bytes()
    needs = memory.needs(graph, work, made.settings.optimizer, min(read, 2 * feed.HELD_BYTES), memory.file_bytes(base))
    beside = memory.beside_bytes(graph, work, made)
    return Forecast(work, graph, needs, held, memory.libraries_bytes(made), beside, _disk(graph, made, read))


def _disk(graph: Graph, made: Plan, read_bytes: int) -> tuple[tuple[str, int, str], ...]:
    settings = made.settings
    file = graph.adapter_bytes * getattr(torch, settings.save_dtype).itemsize // 4
    state = graph.adapter_bytes * (1 + optim.ALL[settings.optimizer].n_states)
    sheet = (len(made.marks) + 1) * len(asking.columns(made)) * settings.resolution**2 * 3
    return (
        ("run", file * (len(made.marks) + 1), f"{len(made.marks)} snapshots and the LoRA, {file / 1e6:.1f} MB each"),
        ("run", 2 * state, "state to resume from; the old one stays until the new one is whole"),
        ("run", 3 * sheet + PAGES_BYTES, "contact sheet and report"),
        ("cache", read_bytes, "latents and text embeddings, where the cache lacks them"),
    )  # fmt: skip


def places(run_folder: Path, cache: Path) -> Mapping[str, Path]:
    """Where each place of `Forecast.disk` is: the nearest folder that exists."""
    return {"run": _existing(run_folder), "cache": _existing(cache)}


def _existing(path: Path) -> Path:
    path = path.absolute()
    return next(folder for folder in (path, *path.parents) if folder.exists())
