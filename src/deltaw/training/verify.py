"""The proof: the written file, read by the ordinary loader, does what was trained."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from deltaw import adapters, formats
from deltaw.delta import Delta, Update
from deltaw.errors import UnverifiedError
from deltaw.inject import Wrapped

TOLERANCE = 0.01
"""How far the file's effect may be from the trained one, relative to the effect. Rounding to float16 costs about a tenth of it."""
N_QUESTIONS = 8
"""Noisy latents that the proof asks the network about."""
BATCH = 2
"""Of them at a time; more costs memory in float32 and gains little."""


@dataclass(frozen=True)
class Proof:
    """What was found about a written file.

    Args:
        n_modules: modules that the ordinary loader matched.
        rounding: ‖ΔW of the file - ΔW trained‖ / ‖ΔW trained‖ over all modules.
        effect: ‖prediction with - prediction without‖ / ‖prediction without‖.
        deviation: ‖prediction with the file - prediction as trained‖ / ‖prediction as trained - without‖.
    """

    n_modules: int
    rounding: float
    effect: float
    deviation: float


def require_sound(delta: Delta) -> None:
    """Refuses a change that is not finite or that changes nothing, before it gets the final name.

    Raises:
        UnverifiedError: naming the modules.
    """
    broken = [p for p, u in delta.updates.items() if not all(bool(torch.isfinite(t).all()) for t in u.tensors.values())]
    if broken:
        raise UnverifiedError(
            f"{len(broken)} of {len(delta.updates)} modules hold numbers that are not finite", where=broken[0],
            advice="lower --lr, or write with --set save_dtype=float32",
        )  # fmt: skip
    if not any(bool(u.tensors["up"].any()) for u in delta.updates.values()):
        raise UnverifiedError(
            "the result changes nothing: every module is zero", advice="more --steps or a higher --lr"
        )


def in_precision(delta: Delta, dtype: torch.dtype) -> tuple[Delta, list[str]]:
    """The change as a file of that precision holds it, and the modules whose numbers it cannot hold.

    Where there are any, the change is given back as it is, in float32: a number too large for float16 would be
    written as infinity. `alpha` is never rounded.
    """
    lost = [path for path, u in delta.updates.items() if any(_overflows(t, dtype) for t in u.tensors.values())]
    if lost:
        return delta, lost
    rounded = {
        path: Update(u.algorithm, {k: t if k == "alpha" else t.to(dtype) for k, t in u.tensors.items()})
        for path, u in delta.updates.items()
    }
    return replace(delta, updates=rounded), []


def _overflows(tensor: Tensor, dtype: torch.dtype) -> bool:
    return bool(tensor.numel()) and float(tensor.abs().max()) > torch.finfo(dtype).max


def require_writable(path: Path, delta: Delta, dialect: str, shapes: Mapping[str, tuple[int, ...]]) -> None:
    """Writes and reads a change of the trained shapes before the run, so that a dialect fails early, not after hours.

    Args:
        path: a scratch file; removed again.
        delta: as untrained as it is.
        dialect: the one asked for.
        shapes: of the base's weights by canonical path.

    Raises:
        InputError: the dialect cannot hold this change.
        UnverifiedError: what is read back differs from what was written.
    """
    try:
        formats.save(delta, path, dialect=dialect, shapes=shapes)
        loaded, match = formats.load(path, shapes=shapes)
    finally:
        shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
    if set(loaded.updates) != set(delta.updates):
        raise UnverifiedError(
            f"a file in the dialect {dialect!r} would lose modules of this base ({match.counts()})", where=path.parent.parent,
            expected="every trained module read back", advice="take --dialect kohya or diffusers",
        )  # fmt: skip


def prove(
    path: Path, trained: Delta, wrapped: Wrapped, component: str, predict: Callable[[], Tensor],
    shapes: Mapping[str, tuple[int, ...]],
) -> Proof:  # fmt: skip
    """Reloads the file and compares its effect on the network with the trained one.

    Args:
        path: the written file.
        trained: what it should hold.
        wrapped: the adapters in the network, as trained; they are put back.
        component: the network's name in canonical paths.
        predict: the network's answer to fixed questions, with whatever the adapters hold.
        shapes: of the base's weights by canonical path.

    Raises:
        UnverifiedError: the file lacks modules, is not finite, has no effect, or another effect.
    """
    loaded, match = formats.load(path, shapes=shapes)
    if set(loaded.updates) != set(trained.updates):
        raise UnverifiedError(f"the file holds other modules than were trained ({match.counts()})", where=path)
    require_sound(loaded)
    as_trained = predict()
    with holding(wrapped, _tensors(loaded, component)):
        from_file = predict()
    with holding(wrapped, zeros(wrapped)):
        without = predict()
    change = float((as_trained - without).norm())
    deviation = float((from_file - as_trained).norm()) / change if change else float("inf")
    proof = Proof(len(loaded.updates), rounding(loaded, trained), change / float(without.norm()), deviation)
    if not change or not torch.isfinite(from_file).all() or deviation > TOLERANCE:
        raise UnverifiedError(
            f"the file's effect deviates by {deviation:.1%} of the trained effect", where=path,
            expected=f"at most {TOLERANCE:.0%}", advice="write with --set save_dtype=float32",
        )  # fmt: skip
    return proof


def _tensors(delta: Delta, component: str) -> dict[str, Tensor]:
    return {
        f"{path.removeprefix(component + '.')}.{name}": update.tensors[name].float()
        for path, update in delta.updates.items()
        for name in ("down", "up")
    }


class holding:
    """A context in which the adapters hold other tensors."""

    def __init__(self, wrapped: Wrapped, tensors: Mapping[str, Tensor]):
        self.wrapped = wrapped
        self.tensors = tensors

    def __enter__(self) -> None:
        self.kept = {name: p.detach().clone() for name, p in self.wrapped.parameters().items()}
        self._set(self.tensors)

    def __exit__(self, *exc: object) -> None:
        self._set(self.kept)

    def _set(self, tensors: Mapping[str, Tensor]) -> None:
        put(self.wrapped, tensors)


def zeros(wrapped: Wrapped) -> dict[str, Tensor]:
    """What the adapters hold where nothing was learnt: with it the network answers as the base does."""
    return {name: torch.zeros_like(p) for name, p in wrapped.parameters().items()}


def put(wrapped: Wrapped, tensors: Mapping[str, Tensor]) -> None:
    """Lets the adapters hold tensors, by `PATH.down` and `PATH.up`."""
    with torch.no_grad():
        for name, parameter in wrapped.parameters().items():
            parameter.copy_(tensors[name])


def rounding(loaded: Delta, trained: Delta) -> float:
    """‖ΔW loaded - ΔW trained‖ / ‖ΔW trained‖ over all modules (Frobenius)."""
    lost = whole = 0.0
    for path, update in trained.updates.items():
        up, down = update.tensors["up"], update.tensors["down"]
        shape = (*up.shape[:1], *down.shape[1:])
        algorithm = adapters.named(update.algorithm)
        dense = algorithm.delta(update.tensors, shape)
        lost += float((algorithm.delta(loaded.updates[path].tensors, shape) - dense).square().sum())
        whole += float(dense.square().sum())
    return (lost / whole) ** 0.5 if whole else 0.0
