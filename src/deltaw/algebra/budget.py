"""Cuts a whole change to a budget: spectra of its modules, a rank for each, and what that leaves out."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from deltaw.adapters.lowrank import Budget, Spectrum, choose_ranks
from deltaw.delta import Update
from deltaw.errors import UsageError

if TYPE_CHECKING:
    import torch

OVERHEAD_BYTES = 420
"""What a module's two entries in a safetensors header take, with the longest names that occur."""

RANK_FLOOR = 1e-6
"""Singular values below this share of the module's largest are rounding of float32, not a rank."""


@dataclass(frozen=True)
class Layer:
    """What was kept of a module.

    Args:
        path: canonical.
        rank: of the factors that were kept.
        full_rank: of what there was.
        norm: Frobenius norm of the whole change of the module.
        error: Frobenius norm of what was left out.
    """

    path: str
    rank: int
    full_rank: int
    norm: float
    error: float


def parse(rank: int | None, energy: float | None, size: int | str | None) -> Budget:
    """The budget of a request.

    Args:
        rank: at least 1.
        energy: in (0, 1].
        size: bytes, or a text such as "4MB", "600 kB", "1.5GiB".

    Raises:
        UsageError: two are given at once, or one is out of range.
    """
    given = [name for name, value in (("--rank", rank), ("--energy", energy), ("--size", size)) if value is not None]
    if len(given) > 1:
        raise UsageError(
            f"{' and '.join(given)} contradict each other", expected="one budget", advice="leave all but one out"
        )
    if rank is not None and rank < 1:
        raise UsageError(f"rank {rank} keeps nothing", where="--rank", expected="1 or more")
    if energy is not None and not 0 < energy <= 1:
        raise UsageError(
            f"{energy} is no share of the energy", where="--energy", expected="above 0, up to 1, e.g. 0.99"
        )
    return Budget(rank, energy, None if size is None else _bytes(size))


def _bytes(size: int | str) -> int:
    units = {
        "b": 1,
        "": 1,
        "k": 1e3,
        "kb": 1e3,
        "m": 1e6,
        "mb": 1e6,
        "g": 1e9,
        "gb": 1e9,
        "kib": 2**10,
        "mib": 2**20,
        "gib": 2**30,
    }
    text = str(size).strip().lower()
    number = text.rstrip("abcdefghijklmnopqrstuvwxyz ")
    unit = text[len(number) :].strip()
    try:
        n_bytes = int(float(number) * units[unit])
    except (ValueError, KeyError, OverflowError) as error:
        raise UsageError(f"{size!r} is no size", where="--size", expected="e.g. 4MB, 600kB, 1.5GiB") from error
    if n_bytes <= 0:
        raise UsageError(f"{size!r} keeps nothing", where="--size", expected="more than 0")
    return n_bytes


def choose(
    spectra: Mapping[str, Spectrum], shapes: Mapping[str, tuple[int, ...]], budget: Budget, dtype: torch.dtype
) -> list[Layer]:
    """Every module's rank under one budget, and what that leaves out; the vectors of the spectra are not looked at.

    Args:
        spectra: canonical path to the spectrum of its change.
        shapes: canonical path to the shape of the weight.
        budget: what to keep; one that is not set keeps every singular value above float32's rounding.
        dtype: of the written factors.
    """
    import torch

    width = torch.empty((), dtype=dtype).element_size()
    values = {path: (_nonzero(spectrum), spectrum.rest) for path, spectrum in spectra.items()}
    costs = {path: width * (shapes[path][0] + math.prod(shapes[path][1:])) for path in spectra}
    ranks = choose_ranks(values, costs, budget, OVERHEAD_BYTES)
    return [
        Layer(path, ranks[path], len(values[path][0]), math.sqrt(spectrum.energy), spectrum.error(ranks[path]))
        for path, spectrum in spectra.items()
    ]


def _nonzero(spectrum: Spectrum) -> list[float]:
    values = spectrum.s.double().tolist()
    return [value for value in values if value > RANK_FLOOR * values[0]] if values else []


def factored(up: torch.Tensor, down: torch.Tensor, shape: tuple[int, ...], dtype: torch.dtype) -> Update:
    """A LoRA update of two matrices, `up (out, r)` and `down (r, in·kh·kw)`, in the form of the weight's `shape`.

    The factors carry no alpha: absent means alpha = r, the one reading that all programs share.
    """
    ones = (1,) * (len(shape) - 2)
    return Update("lora", {
        "up": up.reshape(*up.shape, *ones).to(dtype).contiguous(),
        "down": down.reshape(-1, *shape[1:]).to(dtype).contiguous(),
    })  # fmt: skip


def overall(layers: Sequence[Layer]) -> tuple[float, float]:
    """Relative error over all modules and share of the energy kept: (‖left out‖ / ‖whole‖, 1 − its square)."""
    whole = math.fsum(layer.norm**2 for layer in layers)
    lost = math.fsum(layer.error**2 for layer in layers)
    return (math.sqrt(lost / whole), 1 - lost / whole) if whole else (0.0, 1.0)
