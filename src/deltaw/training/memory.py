"""How much memory each phase of a run takes at its peak, and why; computed before anything is loaded."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from deltaw.data import feed
from deltaw.families.base import Base
from deltaw.judge import questions
from deltaw.training import asking, optim, verify
from deltaw.training.graph import Graph, Job
from deltaw.training.plan import Plan

LIBRARIES_BYTES = 200_000_000
"""What loaded code and its buffers add during a run; measured on the CPU, `python -m benchmarks.prediction`.

oneDNN's compiled kernels are half of it, one for each layer, batch and size that a run comes across."""
KERNELS_BYTES = 95_000_000
"""Of such kernels for every further size of pictures, measured likewise with one to eight sizes; all of them are kept (`device.KERNELS_KEPT`)."""
SCATTERED = 1.3
"""Memory that the C library holds for a step's tensors, over their own bytes: freed pieces lie between those in use. Measured likewise.
torch's own allocator of a GPU's memory leaves far less between them (`SCATTERED_ON_GPU`)."""
SCATTERED_ON_GPU = 1.1
SMALL_BYTES = 256_000_000
"""That is not saved at the cost of time. More at a time makes a CPU slower: it leaves the caches (`docs/performance.md`)."""
STEP_BYTES = 1_000_000_000
"""Of a step's activations on a CPU. More of its pictures at a time are hardly faster there, and large ones slower (`docs/performance.md`)."""
JOINED_BYTES = 70_000_000
"""What the main process holds more where there are others: its kernels are made for two numbers of cores. Measured."""
PROGRAM_BYTES = 600_000_000
"""Of a further process on the CPU: Python, torch, the other libraries and oneDNN's kernels. Measured."""


@dataclass(frozen=True)
class Need:
    """A phase's memory at its peak, beyond what the process holds before the run.

    Args:
        phase: its name.
        n_bytes: that must be there.
        reason: what they are.
        mapped_bytes: pages of weight files that are seen as memory too, and that the system takes back when it needs them.
    """

    phase: str
    n_bytes: int
    reason: str
    mapped_bytes: int = 0

    @property
    def seen_bytes(self) -> int:
        """What a process monitor shows."""
        return self.n_bytes + self.mapped_bytes


def job(base: Base, made: Plan, **changes: Any) -> Job:
    """What the memory of a planned run depends on."""
    settings = made.settings
    values: dict[str, Any] = {
        "dtype": getattr(torch, settings.dtype), "batch": settings.micro_batch, "rank": settings.rank, "targets": settings.targets,
        "largest_px": max(_sizes_px(made), key=lambda size: size[0] * size[1]), "drawn_px": settings.resolution,
        "n_drawn": len(asking.columns(made)), "guided": base.guided(settings.guidance),
        "n_texts": min(feed.TEXT_BATCH, len({"", *made.captions})), "device": torch.device(settings.device),
        "checkpointing": settings.checkpointing, "base_int8": settings.base_int8,
    }  # fmt: skip
    return Job(**{**values, **changes})


def feed_bytes(base: Base, made: Plan) -> int:
    """Bytes of all latents and texts, float32; the cache holds the same."""
    vae = base.folder.configs["vae"]
    latents = sum(vae["latent_channels"] * (w // base.factor) * (h // base.factor) * 4 for w, h in made.sizes_px)
    return latents + len({"", *made.captions}) * math.prod(base.text_shape) * 4


def file_bytes(base: Base) -> dict[str, int]:
    """Bytes of the weight files that libraries map into memory, by part; the network's is read in pieces."""
    parts = [part for part in base.folder.parts if part != base.component]
    return {part: sum(f.stat().st_size for f in base.folder.weights(part)) for part in parts}


def libraries_bytes(made: Plan) -> int:
    """What code and kernels add during a run."""
    on_cpu = torch.device(made.settings.device).type == "cpu"
    joined = JOINED_BYTES if made.settings.processes > 1 else 0
    return LIBRARIES_BYTES + on_cpu * (KERNELS_BYTES * (len(_sizes_px(made)) - 1) + joined)


def beside_bytes(graph: Graph, work: Job, made: Plan) -> int:
    """What a run's other processes hold of the same memory: on a CPU all of theirs, on GPUs, of which each has its own, nothing."""
    if work.device.type != "cpu":
        return 0
    step, asked = _scattered(graph.step.peak_bytes, work), _asked(graph, work, at_a_time(graph, work))
    trained = graph.network_bytes + 2 * graph.adapter_bytes + max(step, asked) + graph.layer(work.dtype)
    return (made.settings.processes - 1) * (PROGRAM_BYTES + max(trained, _drawing(graph, work).n_bytes))


def _sizes_px(made: Plan) -> tuple[tuple[int, int], ...]:
    """Sizes (width, height) of the pictures that a run trains on or asks about, each once, in the pictures' order."""
    return tuple(dict.fromkeys(made.sizes_px[i] for i in (*made.training, *made.held_out)))


def brisk(graph: Graph, work: Job, parts: Sequence[int]) -> int:
    """How many of a step's pictures are best computed at a time on its device.

    Args:
        graph: of the job.
        work: the job.
        parts: to choose from, most first.
    """
    most = STEP_BYTES * work.batch / graph.step.peak_bytes if work.device.type == "cpu" else math.inf
    return next((n for n in parts if n <= most), parts[-1])


def at_a_time(graph: Graph, work: Job) -> int:
    """Questions asked at a time: `questions.BATCH`, or as many as need no more memory than `SMALL_BYTES` or, on a GPU, than a training step.

    Few at a time cost little where a single one keeps the device busy, as those that need much memory do.
    """
    return _fitting(questions.BATCH, graph, work, lambda n: _asked(graph, work, n))


def drawn_at_a_time(graph: Graph, work: Job) -> int:
    """Pictures drawn at a time: a whole row of the sheet, or fewer, as `at_a_time`."""
    return _fitting(work.n_drawn, graph, work, lambda n: _drawn(graph, work, n))


def _fitting(most: int, graph: Graph, work: Job, need: Callable[[int], int]) -> int:
    """`most`, or half of it, or a quarter …"""
    on_cpu = work.device.type == "cpu"
    room = SMALL_BYTES if on_cpu else max(_scattered(graph.step.peak_bytes, work), SMALL_BYTES)
    return next((n for n in (most >> i for i in range(most.bit_length())) if need(n) <= room), 1)


def _drawn(graph: Graph, work: Job, n: int) -> int:
    predictions = n * (2 if work.guided else 1)
    return _scattered(predictions * graph.draw.peak_bytes * work.dtype.itemsize // 4, work) + graph.layer(work.dtype)


def _asked(graph: Graph, work: Job, n: int) -> int:
    return _scattered(graph.asked(n, work.dtype), work)


def needs(graph: Graph, work: Job, optimizer: str, read_bytes: int, files: Mapping[str, int]) -> tuple[Need, ...]:
    """Every phase's need.

    Args:
        graph: of the job's pieces.
        work: the job.
        optimizer: its name.
        read_bytes: latents and texts that training holds, see `feed_bytes`.
        files: see `file_bytes`.
    """
    states = optim.ALL[optimizer].n_states * graph.adapter_bytes
    trained = graph.network_bytes + graph.adapter_bytes + states + read_bytes
    n_asked = at_a_time(graph, work)
    asked = _asked(graph, work, n_asked)
    step = _scattered(graph.step.peak_bytes, work) + graph.layer(work.dtype)
    proof = graph.asked(verify.BATCH, torch.float32) + graph.layer(torch.float32) + 2 * graph.adapter_bytes
    return (
        Need("load", graph.network_bytes, f"the network in {_name(work.dtype)}{' and 8 bits' * work.base_int8}, {size(graph.network_bytes)}"),
        *_encoding(graph, files),
        Need("train", trained + step,
             f"network {size(graph.network_bytes)}; adapters and optimizer {size(graph.adapter_bytes + states)}; a step, "
             f"{_count(work.batch, work.largest_px)} at a time, {size(step)}; latents and texts {size(read_bytes)}"),
        Need("judge", trained + asked, f"the same without gradients, {n_asked} pictures at a time {size(asked)}"),
        Need("save", trained + 2 * (graph.adapter_bytes + states), "copies of adapters and optimizer beside the network"),
        Need("prove", trained + proof, f"one layer at a time in float32, {verify.BATCH} questions at a time {size(proof)}"),
        _drawing(graph, work),
    )  # fmt: skip


def _encoding(graph: Graph, files: Mapping[str, int]) -> Sequence[Need]:
    seen, read = graph.encode.peak_bytes, graph.texts.peak_bytes
    texts = sum(n for part, n in files.items() if part != "vae")
    return (
        Need("encode pictures", graph.vae_bytes + seen, f"VAE in float32 {size(graph.vae_bytes)}; one picture {size(seen)}",
             max(0, files["vae"] - seen)),
        Need("encode captions", graph.text_bytes + read,
             f"text encoder {size(graph.text_bytes)}; captions {size(read)}", max(0, texts - read)),
    )  # fmt: skip


def _drawing(graph: Graph, work: Job) -> Need:
    n = drawn_at_a_time(graph, work)
    drawn = _drawn(graph, work, n)
    reading, decoded = graph.drawing_text_bytes, graph.decode.peak_bytes
    beside = {
        f"text encoder {size(reading)}": reading,
        f"network {size(graph.network_bytes)}; {n} drawn at a time {size(drawn)}": graph.network_bytes + drawn,
        f"one picture decoded {size(decoded)}": decoded,
    }
    why, most = max(beside.items(), key=lambda pair: pair[1])
    return Need("draw", graph.vae_bytes + most, f"VAE in float32 {size(graph.vae_bytes)}; {why}")


def _scattered(n_bytes: int, work: Job) -> int:
    return round((SCATTERED_ON_GPU if work.device.type == "cuda" else SCATTERED) * n_bytes)


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _count(n: int, size_px: tuple[int, int]) -> str:
    return f"{n} × {size_px[0]}×{size_px[1]} px"


def size(n_bytes: int) -> str:
    """Bytes as people read them in a plan: two figures are enough."""
    return f"{n_bytes / 1e9:.2f} GB" if n_bytes >= 1e8 else f"{n_bytes / 1e6:.0f} MB"
