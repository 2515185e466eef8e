"""What each piece of a run's work needs, from the real graph on the meta device: bytes at the peak, and FLOPs."""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from torch import nn

from deltaw import inject, int8
from deltaw.atomic import write_text
from deltaw.errors import DeltawError
from deltaw.families import blueprint as blueprints
from deltaw.families.blueprint import Blueprint
from deltaw.training import tracing
from deltaw.training.tracing import Traced, trace

CPU = torch.device("cpu")
TRACED_IN = torch.float32
"""Predictions without gradient are traced in it, for one picture; they scale with pictures and with bytes a number."""


@dataclass(frozen=True)
class Job:
    """What a run's memory depends on.

    Args:
        dtype: of the frozen base.
        batch: pictures that are computed at a time, all of a step's or a part.
        rank: of the adapters; `targets`: which modules get one.
        largest_px: the largest bucket (width, height).
        drawn_px: side of the drawn pictures.
        n_drawn: pictures drawn at a time; `guided`: each is predicted twice.
        n_texts: captions encoded at a time.
        device: that computes, whose way to compute attention decides what a step keeps.
        checkpointing: activations are computed again in the backward pass.
        base_int8: the base's linear layers are kept in 8 bits.
    """

    dtype: torch.dtype
    batch: int
    rank: int
    targets: str
    largest_px: tuple[int, int]
    drawn_px: int
    n_drawn: int
    guided: bool
    n_texts: int
    device: torch.device = CPU
    checkpointing: bool = False
    base_int8: bool = False


@dataclass(frozen=True)
class Graph:
    """The pieces of a run's work.

    Args:
        network_bytes, vae_bytes, text_bytes: weights as they are used: the network in the job's dtype, the others as they encode and decode.
        drawing_text_bytes: of the text encoders in the job's dtype, in which they draw.
        adapter_bytes: of the trained numbers, float32.
        largest_layer_bytes: of the network's largest module in float32.
        step: one training step without the optimizer's.
        ask: one prediction for one picture of the largest bucket, without gradient, in float32.
        draw: the same for a picture of the size that is drawn.
        encode: one picture into a latent; `decode`: back, at the size that is drawn; `texts`: captions.
    """

    network_bytes: int
    vae_bytes: int
    text_bytes: int
    drawing_text_bytes: int
    adapter_bytes: int
    largest_layer_bytes: int
    step: Traced
    ask: Traced
    draw: Traced
    encode: Traced
    decode: Traced
    texts: Traced

    def asked(self, n: int, dtype: torch.dtype) -> int:
        """Bytes at the peak of a prediction for `n` pictures of the largest bucket without gradient."""
        return n * self.ask.peak_bytes * dtype.itemsize // TRACED_IN.itemsize + self.layer(dtype)

    def layer(self, dtype: torch.dtype) -> int:
        """Bytes of the network's largest module in `dtype`, which libraries copy into a layout of their own."""
        return self.largest_layer_bytes * dtype.itemsize // TRACED_IN.itemsize


def recalled(blueprint: Blueprint, job: Job, root: Path) -> Graph:
    """As `measure`, or what it found before for the same networks, job and code.

    Args:
        blueprint, job: as for `measure`.
        root: folder of the cache.

    Raises:
        UsageError: as `measure`.
    """
    work = {**asdict(job), "dtype": str(job.dtype), "device": job.device.type}
    asked = {"configs": blueprint.configs, "job": work, "code": _code()}
    name = hashlib.sha256(json.dumps(asked, sort_keys=True, default=str).encode()).hexdigest()
    memory = root / "graphs" / f"{name}.json"
    with contextlib.suppress(OSError, ValueError, TypeError, AttributeError):  # none yet, or damaged
        kept = json.loads(memory.read_text(encoding="utf-8"))
        pieces: dict[str, Any] = {n: Traced(**v) if isinstance(v, dict) else v for n, v in kept.items()}
        return Graph(**pieces)
    found = measure(blueprint, job)
    with contextlib.suppress(DeltawError, OSError):  # a full or read-only cache costs time, nothing else
        write_text(memory, json.dumps(asdict(found)))
    return found


def _code() -> list[str]:
    """What the graphs depend on beside the base and the job."""
    families = sorted(Path(blueprints.__file__).parent.glob("*.py"))
    files = (__file__, tracing.__file__, inject.__file__, int8.__file__, *families)
    return [
        torch.__version__,
        metadata.version("diffusers"),
        *(hashlib.sha256(Path(f).read_bytes()).hexdigest() for f in files),
    ]


def measure(blueprint: Blueprint, job: Job) -> Graph:
    """Runs every piece once on the meta device.

    Raises:
        UsageError: the targets match nothing, or the rank is too large.
    """
    plain = blueprint.denoiser(TRACED_IN)
    ask = _without_gradient(plain, lambda: plain(**blueprint.questions(1, job.largest_px, TRACED_IN)))
    drawn = (job.drawn_px, job.drawn_px)
    draw = ask
    if drawn != job.largest_px:
        draw = _without_gradient(plain, lambda: plain(**blueprint.questions(1, drawn, TRACED_IN)))
    layers = [sum(p.nbytes for p in m.parameters(recurse=False)) for m in plain.modules()]
    network = blueprint.denoiser(job.dtype, job.device, checkpointing=job.checkpointing, packed=job.base_int8)
    wrapped = inject.wrap(network, job.targets, job.rank, float(job.rank), torch.Generator().manual_seed(0))
    trained = list(wrapped.parameters().values())
    adapter = sum(p.nbytes for p in trained)
    vae, texts = blueprint.autoencoder(), blueprint.text_encoders(packed=job.base_int8)
    return Graph(
        network_bytes=_nbytes(network) - adapter, vae_bytes=_nbytes(vae), text_bytes=_nbytes(texts),
        drawing_text_bytes=sum(_drawing_bytes(t, job.dtype) for t in _tensors(texts)), adapter_bytes=adapter,
        largest_layer_bytes=max(layers), step=_step(network, trained, blueprint.questions(job.batch, job.largest_px, job.dtype)),
        ask=ask, draw=draw,
        encode=_without_gradient(vae, lambda: vae.encode(blueprint.pixels(1, job.largest_px))),
        decode=_without_gradient(vae, lambda: vae.decode(blueprint.latents(1, drawn))),
        texts=_without_gradient(texts, lambda: blueprint.encode(texts, job.n_texts)),
    )  # fmt: skip


def _step(network: nn.Module, trained: Sequence[nn.Parameter], arguments: dict[str, Any]) -> Traced:
    def work() -> Sequence[torch.Tensor]:
        return torch.autograd.grad(network(**arguments)[0].float().square().mean(), trained)

    return trace(work, _tensors(network))


def _without_gradient(model: nn.Module, work: Callable[[], object]) -> Traced:
    with torch.no_grad():
        return trace(work, _tensors(model))


def _tensors(model: nn.Module) -> list[torch.Tensor]:
    return [*model.parameters(), *model.buffers()]


def _drawing_bytes(weight: torch.Tensor, dtype: torch.dtype) -> int:
    """Of a text encoder's weight where it draws; what is kept in 8 bits stays so."""
    return weight.numel() * (dtype.itemsize if weight.is_floating_point() else weight.itemsize)


def _nbytes(model: nn.Module) -> int:
    return sum(t.nbytes for t in _tensors(model))
