"""How a weight differs in two checkpoints, compared block by block, so that neither checkpoint's is held whole."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from deltaw.adapters.scaling import computing
from deltaw.families.checkpoint import Reader

if TYPE_CHECKING:
    import torch

BLOCK = 1 << 18
"""Numbers that are compared at once; they and what is made of them stay in the processor's cache."""


@dataclass
class Difference:
    """What two checkpoints' weights of a module say of each other.

    Args:
        change: tuned − base, in at least float32; None where only its size was asked for.
        tuned, base, energy: squared Frobenius norms of the two and of the difference.
        inner: their inner product.
        noise: the largest singular value that rounding to the checkpoints' types makes of nothing. A rounding error is
            uniform within half an ulp, so σ_ij ≤ ε·|W_ij| / √12; the spectral norm of independent entries is about the
            largest row norm plus the largest column norm of σ (Bandeira & van Handel 2016, arXiv 1408.6185).
    """

    change: torch.Tensor | None
    tuned: float = 0.0
    base: float = 0.0
    energy: float = 0.0
    inner: float = 0.0
    noise: float = 0.0


def of_stacked(paths: Sequence[str], new: Reader, old: Reader) -> Difference:
    """The difference of several modules' weights as one matrix, their rows one below the other."""
    import torch

    shapes = [old.checkpoint.shapes[path] for path in paths]
    whole = torch.empty(sum(shape[0] for shape in shapes), *shapes[0][1:])
    parts = [
        between(path, new, old, keep=True, room=room)
        for path, room in zip(paths, whole.split([shape[0] for shape in shapes]), strict=True)
    ]
    return Difference(
        whole, *(math.fsum(getattr(part, name) for part in parts) for name in ("tuned", "base", "energy", "inner")),
        noise=math.hypot(*(part.noise for part in parts)),
    )  # fmt: skip


def between(path: str, new: Reader, old: Reader, *, keep: bool, room: torch.Tensor | None = None) -> Difference:
    """The difference of a module's weight.

    Args:
        path: canonical, with one shape in both.
        new, old: the tuned checkpoint and its base.
        keep: the difference itself is wanted, not only its size.
        room: where to put it, of its shape.
    """
    import torch

    found = Difference(None)
    shape = old.checkpoint.shapes[path]
    columns = torch.zeros(math.prod(shape[1:]))
    widest_row, epsilon, at = 0.0, 0.0, 0
    for own, theirs in zip(new.blocks(path, BLOCK), old.blocks(path, BLOCK), strict=True):
        kind = torch.promote_types(computing(own), computing(theirs))
        n = own.shape[0]
        after, before = (block.to(kind).reshape(n, -1) for block in (own, theirs))
        if at == 0 and keep:
            found.change = torch.empty(shape, dtype=kind) if room is None else room
        found.tuned, found.base = found.tuned + square(after), found.base + square(before)
        found.inner += float(after.flatten() @ before.flatten())
        epsilon = math.hypot(torch.finfo(own.dtype).eps, torch.finfo(theirs.dtype).eps)
        widest_row = max(widest_row, float(torch.linalg.vector_norm(after, dim=1).max()))
        columns = columns + after.square().sum(0)
        change = after - before
        found.energy += square(change)
        if found.change is not None:
            found.change[at : at + n] = change.reshape(own.shape)
        at += n
    found.noise = epsilon / math.sqrt(12) * (widest_row + math.sqrt(float(columns.max())))
    return found


def square(matrix: torch.Tensor) -> float:
    """Squared Frobenius norm."""
    import torch

    return float(torch.linalg.vector_norm(matrix)) ** 2
