"""From sums to a verified file, module by module: cut to one budget, written, read again and compared.

No more than one module is whole in memory: what was computed is set aside (`spool`), the written file is read on
demand, and what it has to do is known by what the sums did to random probes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from deltaw import formats, spool, tensorfile
from deltaw.adapters.lowrank import Budget, Spectrum
from deltaw.adapters.scaling import is_finite
from deltaw.algebra import budget, combine
from deltaw.algebra.budget import Layer
from deltaw.algebra.combine import Sum
from deltaw.algebra.probe import Probes, Proof
from deltaw.delta import Delta, Update
from deltaw.errors import InputError, UnverifiedError
from deltaw.families.listing import Shapes
from deltaw.spool import Kept, Spool

if TYPE_CHECKING:
    import torch


class OnDemand(Mapping[str, Update]):
    """Updates that are made when they are asked for; too large a number for the dtype is refused by name."""

    def __init__(self, makers: Mapping[str, Callable[[], Update]], where: Path):
        self._makers, self._where = makers, where

    def __getitem__(self, path: str) -> Update:
        update = self._makers[path]()
        if not all(map(is_finite, update.tensors.values())):
            raise InputError(f"{path} is too large for the dtype, or was not finite", where=self._where,
                             expected="finite numbers", advice="choose --dtype float32, or smaller weights")  # fmt: skip
        return update

    def __iter__(self) -> Iterator[str]:
        return iter(self._makers)

    def __len__(self) -> int:
        return len(self._makers)


@dataclass(frozen=True)
class Shelved:
    """A spectrum whose vectors are set aside.

    Args:
        values: the spectrum without vectors.
        u, vt: the vectors.
    """

    values: Spectrum
    u: Kept
    vt: Kept

    @classmethod
    def of(cls, spectrum: Spectrum, kept: Spool) -> Shelved:
        """Sets a spectrum's vectors aside."""
        values = replace(spectrum, u=spectrum.u[:, :0].clone(), vt=spectrum.vt[:0].clone())
        return cls(values, kept.keep(spectrum.u), kept.keep(spectrum.vt))

    def factored(self, rank: int, shape: tuple[int, ...], dtype: torch.dtype) -> Update:
        """The best update of that rank."""
        whole = replace(self.values, u=self.u.tensor(), vt=self.vt.tensor())
        return budget.factored(*whole.cut(rank), shape, dtype)


@dataclass(frozen=True)
class Written:
    """What became of sums.

    Args:
        n_bytes: the file's size.
        n_modules: modules in it.
        layers: module by module, what was kept and what was left out.
        error: ‖left out‖ / ‖sum‖ over all modules, rounding to the written dtype included (measured on probes).
    """

    n_bytes: int
    n_modules: int
    layers: tuple[Layer, ...]
    error: float


def write(
    sums: Iterable[tuple[str, Sum]], frame: Delta, out: Path, *, wanted: Budget, dtype: torch.dtype, dialect: str,
    shapes: Shapes, generator: torch.Generator,
) -> Written:  # fmt: skip
    """Writes sums as a LoRA, as they are or cut to one budget over all modules that have a rank.

    Args:
        sums: canonical path and sum, each asked for once.
        frame: family, trigger words, metadata and token vectors of the result; its updates are not looked at.
        out: what to write.
        wanted: the budget; where none is set, the sums are written exactly.
        dtype: of the factors.
        dialect: of the file.
        shapes: of the base's weights.
        generator: the only source of randomness.

    Raises:
        InputError: nothing is left, or numbers are too large for the dtype.
        UnverifiedError: the file does something else than what was asked for.
    """
    with spool.opened(out.parent) as kept:
        made = _Making(wanted, dtype, kept, generator)
        for path, total in sums:
            made.take(path, total)
        updates, layers = made.done(shapes, out)
        if not updates:
            raise InputError("nothing is left to write", where=out, expected="a weight other than 0, a budget above one rank",
                             advice="check the weights and the budget")  # fmt: skip
        error, n_bytes = _write_verified(replace(frame, updates=updates), made.proofs, layers, shapes, out, dialect,
                                         made.probes)  # fmt: skip
    return Written(n_bytes, len(updates), tuple(layers), error)


class _Making:
    """What is known of the sums that were taken."""

    def __init__(self, wanted: Budget, dtype: torch.dtype, kept: Spool, generator: torch.Generator):
        self._wanted, self._dtype, self._kept, self._generator = wanted, dtype, kept, generator
        self.probes = Probes(generator)
        self.proofs: dict[str, Proof] = {}
        self._spectra: dict[str, Shelved] = {}
        self._exact: dict[str, tuple[str, dict[str, Kept]]] = {}
        self._layers: list[Layer] = []

    def take(self, path: str, total: Sum) -> None:
        self.proofs[path] = Proof.of(len(self.proofs), total, self.probes)
        bias = None if total.bias is None else {"bias": self._kept.keep(total.bias.to(self._dtype))}
        if self._wanted.is_set and len(total.shape) > 1 and _changes_weight(total):
            self._spectra[path] = Shelved.of(total.spectrum(self._wanted.rank, self._generator), self._kept)
            if bias is not None:
                self._exact[path] = "full", bias
            return
        update = total.exact(self._dtype)
        if update is not None:
            self._exact[path] = update.algorithm, {n: self._kept.keep(t) for n, t in update.tensors.items()}
        if update is not None or not self._wanted.is_set:
            n = total.factors[0].shape[1] if total.factors is not None else 0
            self._layers.append(Layer(path, n, n, combine.norm_of(total), 0.0))

    def done(self, shapes: Shapes, where: Path) -> tuple[OnDemand, list[Layer]]:
        """The updates, made when asked for, and what each kept."""
        chosen = budget.choose(
            {path: one.values for path, one in self._spectra.items()}, shapes, self._wanted, self._dtype
        )
        ranks = {layer.path: layer.rank for layer in chosen if layer.rank}
        paths = [*ranks, *(path for path in self._exact if path not in ranks)]
        makers = {path: partial(self._made, path, ranks.get(path, 0), shapes) for path in paths}
        return OnDemand(makers, where), [*chosen, *self._layers]

    def _made(self, path: str, rank: int, shapes: Shapes) -> Update:
        algorithm, kept = self._exact.get(path, ("lora", {}))
        whole = {name: one.tensor() for name, one in kept.items()}
        if not rank:
            return Update(algorithm, whole)
        cut = self._spectra[path].factored(rank, shapes[path], self._dtype)
        return Update(cut.algorithm, {**cut.tensors, **whole})


def _changes_weight(total: Sum) -> bool:
    return total.dense is not None or (total.factors is not None and total.factors[0].shape[1] > 0)


def _write_verified(
    merged: Delta, proofs: Mapping[str, Proof], layers: Iterable[Layer], shapes: Shapes, out: Path, dialect: str,
    probes: Probes,
) -> tuple[float, int]:  # fmt: skip
    """Writes, reads again and compares on probes before the file takes its name; the measured error and the size."""
    promised = {layer.path: layer.error for layer in layers}
    if formats.named(dialect).NAME == "peft":
        n_bytes = formats.save(merged, out, dialect, shapes=shapes)
        return _verify(out, proofs, promised, shapes, probes), n_bytes
    with tensorfile.replacing(out) as temporary:
        formats.save(merged, temporary, dialect, shapes=shapes)
        error = _verify(temporary, proofs, promised, shapes, probes)
    return error, out.stat().st_size


def _verify(
    path: Path, proofs: Mapping[str, Proof], promised: Mapping[str, float], shapes: Shapes, probes: Probes
) -> float:
    lost = whole = 0.0
    with formats.lazy(path, shapes=shapes) as written:
        for name, proof in proofs.items():
            off, rounding = proof.compare(written.delta.updates.get(name), probes)
            allowed = promised.get(name, 0.0) * math.sqrt(probes.n) * 2.5 + rounding
            if not off <= allowed:
                raise UnverifiedError(f"the written change of {name} is off by {off:.3g} of {proof.norm:.3g}", where=path,
                                      expected=f"at most {allowed:.3g}", advice="choose --dtype float32; if it stays, report it")  # fmt: skip
            lost, whole = lost + off**2, whole + proof.norm**2
    return math.sqrt(lost / whole) if whole else 0.0
