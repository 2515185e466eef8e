"""From sums to a verified file, module by module: cut to one budget, written, read again and compared.

No more than one module is whole in memory: what was computed is set aside (`spool`), the written file is read on
demand, and what it has to do is known by what the sums did to random probes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from deltaw import device, families, formats, spool, tensorfile
from deltaw.adapters.lowrank import Budget, Spectrum
from deltaw.adapters.scaling import is_finite
from deltaw.algebra import budget, combine
from deltaw.algebra.budget import Layer
from deltaw.algebra.combine import Sum
from deltaw.algebra.probe import Probes, Proof
from deltaw.delta import Delta, Update
from deltaw.errors import InputError, UnverifiedError
from deltaw.events import Phase, Tell, Tick
from deltaw.families.listing import Shapes
from deltaw.spool import Kept, Spool

if TYPE_CHECKING:
    import torch


FREED_BYTES = 1 << 28
"""Of dense changes, after which the C library is asked to give back what it keeps between the small tensors that stay."""


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
class Part:
    """A module's rows in what was computed for all modules of its unit.

    Args:
        unit: the modules that share one weight in the dialect, and so one `down` and one rank.
        begin: of its rows.
        shape: of its weight.
    """

    unit: tuple[str, ...]
    begin: int
    shape: tuple[int, ...]


def parts_of(units: Iterable[tuple[str, ...]], shapes: Shapes) -> dict[str, Part]:
    """Every module's part of its unit."""
    found: dict[str, Part] = {}
    for unit in units:
        begin = 0
        for path in unit:
            found[path] = Part(unit, begin, shapes[path])
            begin += shapes[path][0]
    return found


def name_of(unit: tuple[str, ...]) -> str:
    """What a unit is called in reports."""
    return " + ".join(unit)


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

    def factored(self, rank: int, part: Part, dtype: torch.dtype) -> Update:
        """The best update of that rank, or a module's part of it."""
        whole = replace(self.values, u=self.u.tensor(), vt=self.vt.tensor())
        up, down = whole.cut(rank)
        return budget.factored(up[part.begin : part.begin + part.shape[0]], down, part.shape, dtype)


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


def chosen_of(
    spectra: Mapping[tuple[str, ...], Shelved], stacked: Mapping[tuple[str, ...], tuple[int, ...]], wanted: Budget,
    dtype: torch.dtype,
) -> list[Layer]:  # fmt: skip
    """Every unit's rank under the budget; `stacked` is the shape of its weight in the file."""
    values = {name_of(unit): one.values for unit, one in spectra.items()}
    return budget.choose(values, {name_of(unit): shape for unit, shape in stacked.items()}, wanted, dtype)


def write(
    paths: Sequence[str], sum_of: Callable[[str], Sum], frame: Delta, out: Path, *, wanted: Budget, dtype: torch.dtype,
    dialect: str, shapes: Shapes, generator: torch.Generator, tell: Tell,
) -> Written:  # fmt: skip
    """Writes sums as a LoRA, as they are or cut to one budget over all modules that have a rank.

    Modules whose weights are stacked in the dialect are cut as the one matrix that they are there.

    Args:
        paths: of the modules.
        sum_of: makes a module's sum; asked once each.
        frame: family, trigger words, metadata and token vectors of the result; its updates are not looked at.
        out: what to write.
        wanted: the budget; where none is set, the sums are written exactly.
        dtype: of the factors.
        dialect: of the file.
        shapes: of the base's weights.
        generator: the only source of randomness.
        tell: hears events.

    Raises:
        InputError: nothing is left, or numbers are too large for the dtype.
        UnverifiedError: the file does something else than what was asked for.
    """
    units = formats.units(dialect, families.named(frame.family), shapes, paths)
    tell(Phase("sum", len(paths), "modules"))
    with spool.opened(out.parent) as kept:
        made = _Making(wanted, dtype, kept, generator, units, parts_of(units, shapes))
        for unit in units:
            made.take({path: sum_of(path) for path in unit})
            tell(Tick(len(made.proofs)))
        updates, layers = made.done(out)
        if not updates:
            raise InputError("nothing is left to write", where=out, expected="a weight other than 0, a budget above one rank",
                             advice="check the weights and the budget")  # fmt: skip
        promised = {path: layer.error for layer in layers for path in layer.path.split(" + ")}
        error, n_bytes = _write_verified(replace(frame, updates=updates), made.proofs, promised, shapes, out, dialect,
                                         made.probes)  # fmt: skip
    return Written(n_bytes, len(updates), tuple(layers), error)


class _Making:
    """What is known of the sums that were taken."""

    def __init__(
        self, wanted: Budget, dtype: torch.dtype, kept: Spool, generator: torch.Generator,
        units: Mapping[tuple[str, ...], int], parts: Mapping[str, Part],
    ):  # fmt: skip
        self._wanted, self._dtype, self._kept, self._generator = wanted, dtype, kept, generator
        self._units, self._parts = units, parts
        self.probes = Probes(generator)
        self.proofs: dict[str, Proof] = {}
        self._spectra: dict[tuple[str, ...], Shelved] = {}
        self._exact: dict[str, tuple[str, dict[str, Kept]]] = {}
        self._layers: list[Layer] = []
        self._n_freed = 0

    def take(self, sums: Mapping[str, Sum]) -> None:
        """Takes the sums of a unit's modules."""
        for path, total in sums.items():
            self.proofs[path] = Proof.of(len(self.proofs), total, self.probes)
        self._take(sums)
        self._n_freed += sum(total.dense.nbytes for total in sums.values() if total.dense is not None)
        if self._n_freed > FREED_BYTES:
            self._n_freed = 0
            device.give_back()

    def _take(self, sums: Mapping[str, Sum]) -> None:
        matrices = [total for total in sums.values() if len(total.shape) > 1 and _changes_weight(total)]
        if self._wanted.is_set and matrices:
            whole = matrices[0] if len(sums) == 1 else combine.joint(list(sums.values()))
            self._spectra[tuple(sums)] = Shelved.of(whole.spectrum(self._wanted.rank, self._generator), self._kept)
            for path, total in sums.items():
                if total.bias is not None:
                    self._exact[path] = "full", {"bias": self._kept.keep(total.bias.to(self._dtype))}
            return
        for path, total in _with_one_rank(sums).items():
            update = total.exact(self._dtype)
            if update is not None:
                self._exact[path] = update.algorithm, {n: self._kept.keep(t) for n, t in update.tensors.items()}
            if update is not None or not self._wanted.is_set:
                n = total.factors[0].shape[1] if total.factors is not None else 0
                self._layers.append(Layer(path, n, n, combine.norm_of(total), 0.0))

    def done(self, where: Path) -> tuple[OnDemand, list[Layer]]:
        """The updates, made when asked for, and what each unit kept."""
        stacked = {unit: (self._units[unit], *self._parts[unit[0]].shape[1:]) for unit in self._spectra}
        chosen = chosen_of(self._spectra, stacked, self._wanted, self._dtype)
        ranks = {
            path: layer.rank for layer, unit in zip(chosen, self._spectra, strict=True) if layer.rank for path in unit
        }
        names = [*ranks, *(path for path in self._exact if path not in ranks)]
        makers = {path: partial(self._made, self._parts[path], path, ranks.get(path, 0)) for path in names}
        return OnDemand(makers, where), [*chosen, *self._layers]

    def _made(self, part: Part, path: str, rank: int) -> Update:
        algorithm, kept = self._exact.get(path, ("lora", {}))
        whole = {name: one.tensor() for name, one in kept.items()}
        if not rank:
            return Update(algorithm, whole)
        cut = self._spectra[part.unit].factored(rank, part, self._dtype)
        return Update(cut.algorithm, {**cut.tensors, **whole})


def _with_one_rank(sums: Mapping[str, Sum]) -> Mapping[str, Sum]:
    """The sums of a unit as they are, or where their ranks differ, with one `down` for all of them."""
    thin = [total.factors for total in sums.values() if total.factors is not None]
    if len(thin) < len(sums) or len({up.shape[1] for up, _ in thin}) == 1:
        return sums
    whole = combine.joint(list(sums.values()))
    assert whole.factors is not None  # all of them are thin
    ups = whole.factors[0].split([total.shape[0] for total in sums.values()])
    return {
        path: Sum(total.shape, (up, whole.factors[1]), None, total.bias)
        for (path, total), up in zip(sums.items(), ups, strict=True)
    }


def _changes_weight(total: Sum) -> bool:
    return total.dense is not None or (total.factors is not None and total.factors[0].shape[1] > 0)


def _write_verified(
    merged: Delta, proofs: Mapping[str, Proof], promised: Mapping[str, float], shapes: Shapes, out: Path, dialect: str,
    probes: Probes,
) -> tuple[float, int]:  # fmt: skip
    """Writes, reads again and compares on probes before the file takes its name; the measured error and the size."""
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
