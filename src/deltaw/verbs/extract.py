"""`deltaw extract`: the LoRA that turns one checkpoint into another, with all that it could not capture.

Both are streamed, one weight at a time. The spectrum of each difference is randomised with a measured
residual; one energy or size budget chooses every layer's rank. Nothing is clamped, and singular values that
rounding of the checkpoints' own types would make of nothing are not taken for a change.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from deltaw import formats, spool, tensorfile
from deltaw.adapters import lowrank
from deltaw.adapters.lowrank import Budget, Spectrum
from deltaw.adapters.scaling import computing
from deltaw.algebra import budget, difference, inputs
from deltaw.algebra.budget import Layer
from deltaw.algebra.difference import Difference
from deltaw.algebra.result import OnDemand, Shelved, chosen_of, name_of, parts_of
from deltaw.delta import Delta, Update
from deltaw.errors import InputError
from deltaw.events import Note, Phase, Saved, Tell, Tick, Warn, silent
from deltaw.families.checkpoint import Checkpoint, Reader, open_checkpoint
from deltaw.spool import Spool
from deltaw.verbs.convert import require_same

if TYPE_CHECKING:
    import torch

FIRST_RANK = 32
"""Triplets that are tried first; doubled until the budget's share of a layer's energy is reached."""
MOST_RANK = 256
"""Triplets beyond which a layer's whole SVD is no dearer, or a LoRA no longer the right form."""
UNRELATED = 0.5
"""Below this cosine between their weights, two checkpoints do not descend from each other."""


@dataclass(frozen=True)
class ExtractReport:
    """What was extracted and what was not.

    Args:
        path: the written file.
        n_bytes: its size.
        layers: module by module, rank, norm and what was left out.
        energy: share of the squared norm of the weights' difference that was kept, over all matrices.
        change: ‖W' − W‖ / ‖W‖ over all matrices.
        cosine: between the two checkpoints' matrices; 1 for equal ones.
        uncaptured: what differs and is not in the file, with its size in words.
    """

    path: Path
    n_bytes: int
    layers: tuple[Layer, ...]
    energy: float
    change: float
    cosine: float
    uncaptured: Mapping[str, str]


@dataclass
class _Tally:
    """Sums over the matrices while streaming."""

    base: float = 0.0
    tuned: float = 0.0
    inner: float = 0.0
    difference: float = 0.0
    noise: float = 0.0
    uncaptured: dict[str, str] = field(default_factory=dict)
    full: dict[str, Update] = field(default_factory=dict)

    @property
    def cosine(self) -> float:
        size = math.sqrt(self.base * self.tuned)
        return self.inner / size if size else 0.0


def extract(
    tuned: str | Path,
    base: str | Path,
    out: str | Path,
    *,
    rank: int | None = None,
    energy: float | None = None,
    size: int | str | None = None,
    full_norms: bool = False,
    dialect: str = "kohya",
    dtype: str | None = None,
    seed: int = 0,
    force: bool = False,
    tell: Tell = silent,
) -> ExtractReport:
    """Writes the difference of two checkpoints as a LoRA.

    Args:
        tuned: the changed checkpoint, a diffusers folder or a single file.
        base: the one it came from, in either form.
        out: what to write.
        rank, energy, size: at most one budget; energy 0.99 by default.
        full_norms: keep the differences of norms and biases whole (only kohya's and Comfy's dialects hold them).
        dialect: of the written file.
        dtype: of the written factors, float16 by default.
        seed: of the random projections.
        force: go on although the two do not look related.
        tell: hears events.

    Raises:
        UsageError: two budgets, or `out` is an input.
        InputError: the two are equal, unrelated or of different families, or one cannot be read.
    """
    inputs.require_output(out, (tuned, base), folder=dialect == "peft")
    wanted = budget.parse(rank, energy, size)
    wanted = wanted if wanted.is_set else Budget(energy=0.99)
    kind = inputs.dtype_named(dtype or "float16")
    changed, original = open_checkpoint(tuned), open_checkpoint(base)
    if changed.family != original.family:
        raise InputError(f"this is {changed.family.title}, the base is {original.family.title}", where=tuned,
                         expected="two checkpoints of one family", advice="check --base")  # fmt: skip
    tally = _Tally()
    with spool.opened(Path(out).parent) as kept:
        spectra = _spectra(changed, original, wanted, tally, full_norms, seed, tell, kept, dialect)
        tally.uncaptured.update(_outside(changed, original))
        _require_related(tuned, base, tally, force, bool(spectra or tally.full))
        layers, makers = _cut(spectra, original, wanted, dialect, kind)
        makers |= {path: partial(Update, update.algorithm, update.tensors) for path, update in tally.full.items()}
        made = Delta(original.family.name, OnDemand(makers, Path(out)))
        with tensorfile.replacing(out) as temporary:
            n_bytes = formats.save(made, temporary, dialect, shapes=original.shapes)
            require_same(made, temporary, original.shapes)
    share = _kept_energy(layers, tally)
    _tell_all(tell, layers, spectra, tally, share)
    tell(Saved(str(out), n_bytes, f"{len(made.updates)} modules, {share:.1%} of the difference's energy"))
    change = math.sqrt(tally.difference / tally.base) if tally.base else 0.0
    return ExtractReport(Path(out), n_bytes, tuple(layers), share, change, tally.cosine, tally.uncaptured)


def _spectra(
    changed: Checkpoint, original: Checkpoint, wanted: Budget, tally: _Tally, full_norms: bool, seed: int, tell: Tell,
    kept: Spool, dialect: str,
) -> dict[tuple[str, ...], Shelved]:  # fmt: skip
    """The leading part of every matrix' difference, one difference in memory at a time; the rest goes into the tally.

    Modules whose weights are stacked in the dialect are one matrix here as they are there.
    """
    shared = _shared(changed, original, tally.uncaptured)
    tell(Phase("spectra", len(shared), "weights"))
    spectra: dict[tuple[str, ...], Shelved] = {}
    n_done = 0
    with changed.reader() as new, original.reader() as old:
        for unit in formats.units(dialect, original.family, original.shapes, shared):
            if (spectrum := _difference(unit, new, old, wanted, tally, full_norms, seed)) is not None:
                spectra[unit] = Shelved.of(spectrum, kept)
            n_done += len(unit)
            tell(Tick(n_done, unit[0]))
        _biases(new, old, tally, full_norms)
    return spectra


def _cut(
    spectra: Mapping[tuple[str, ...], Shelved], original: Checkpoint, wanted: Budget, dialect: str, dtype: torch.dtype
) -> tuple[list[Layer], dict[str, Callable[[], Update]]]:
    """Every unit's rank under the budget, and what makes each module's update of it."""
    rows = formats.units(dialect, original.family, original.shapes, (path for unit in spectra for path in unit))
    stacked = {unit: (rows[unit], *original.shapes[unit[0]][1:]) for unit in spectra}
    layers = chosen_of(spectra, stacked, wanted, dtype)
    parts = parts_of(spectra, original.shapes)
    return layers, {
        path: partial(one.factored, layer.rank, parts[path], dtype)
        for (unit, one), layer in zip(spectra.items(), layers, strict=True) if layer.rank for path in unit
    }  # fmt: skip


def _shared(changed: Checkpoint, original: Checkpoint, uncaptured: dict[str, str]) -> list[str]:
    """Modules that both have in one shape; the others are noted."""
    for path in changed.shapes.keys() ^ original.shapes.keys():
        uncaptured[path] = "only in the " + ("changed checkpoint" if path in changed.shapes else "base")
    both = [path for path in original.shapes if path in changed.shapes]
    for path in both:
        if changed.shapes[path] != original.shapes[path]:
            uncaptured[path] = f"{list(changed.shapes[path])} instead of {list(original.shapes[path])}"
    return [path for path in both if path not in uncaptured]


def _difference(
    unit: tuple[str, ...], new: Reader, old: Reader, wanted: Budget, tally: _Tally, full_norms: bool, seed: int
) -> Spectrum | None:
    """The leading part of the difference of a unit's weight; None where there is none that a LoRA can hold."""
    path = unit[0]
    shape = old.checkpoint.shapes[path]
    # a token's vector is not a matrix that a LoRA would multiply
    is_matrix = len(shape) > 1 and "embedding" not in path
    if len(unit) > 1:
        met = difference.of_stacked(unit, new, old)
    else:
        met = difference.between(path, new, old, keep=is_matrix or len(shape) == 1)
    if not math.isfinite(met.energy):
        raise InputError(
            f"{name_of(unit)} holds NaN or infinite numbers",
            where=new.checkpoint.where,
            advice="use another checkpoint",
        )
    if not is_matrix:
        if met.energy:
            _keep_whole(path, "diff", met, tally, full_norms and len(shape) == 1)
        return None
    tally.tuned += met.tuned
    tally.base += met.base
    tally.inner += met.inner
    tally.difference += met.energy
    if met.energy == 0 or met.change is None:
        return None
    spectrum = _leading(met.change.flatten(1), wanted, met.noise, seed)
    kept = int((spectrum.s > math.hypot(met.noise, _arithmetic(spectrum.s, met.change))).sum())
    below = float(spectrum.s[kept:].double().square().sum()) + spectrum.rest
    tally.noise += below if kept == 0 else 0.0
    return Spectrum(spectrum.u[:, :kept], spectrum.s[:kept], spectrum.vt[:kept], below) if kept else None


def _leading(change: torch.Tensor, wanted: Budget, noise: float, seed: int) -> Spectrum:
    """Enough triplets for the budget: as many as asked, or until a layer's share or the noise is reached."""
    most = min(MOST_RANK, *change.shape)
    n = min(most, wanted.rank or FIRST_RANK)
    share = 1 - (wanted.energy if wanted.energy is not None else 0.999)
    while True:
        spectrum = lowrank.of_dense(change, n, inputs.seeded(seed))
        enough = spectrum.rest <= share * spectrum.energy or float(spectrum.s[-1]) <= noise
        if wanted.rank is not None or enough or n >= most:
            return spectrum
        n = min(most, 2 * n)


def _arithmetic(s: torch.Tensor, change: torch.Tensor) -> float:
    """Singular values that float32 arithmetic on a matrix with these makes of nothing: a few ε·√n·σ₁."""
    import torch

    return 2 * torch.finfo(torch.float32).eps * math.sqrt(min(change.flatten(1).shape)) * float(s[0])


def _keep_whole(path: str, name: str, met: Difference, tally: _Tally, full_norms: bool) -> None:
    if full_norms and met.change is not None:
        own = tally.full.get(path, Update("full", {}))
        tally.full[path] = Update("full", {**own.tensors, name: met.change})
    else:
        kind = "bias" if name == "bias" else "norm" if met.change is not None else "embedding"
        tally.uncaptured[f"{path}.{name}"] = f"a {kind} that differs by {math.sqrt(met.energy):.3g}"


def _biases(new: Reader, old: Reader, tally: _Tally, full_norms: bool) -> None:
    for path in old.checkpoint.biases:
        if path in new.checkpoint.biases:
            after, before = _wide(new.bias(path)), _wide(old.bias(path))
            if after.shape == before.shape and bool((after - before).any()):
                is_norm = len(old.checkpoint.shapes.get(path, ())) == 1
                met = Difference(after - before, energy=difference.square(after - before))
                _keep_whole(path, "bias", met, tally, full_norms and is_norm)


def _outside(changed: Checkpoint, original: Checkpoint) -> dict[str, str]:
    """Tensors without a canonical path (VAE, EMA copies, position tables) that differ, counted by their first words."""
    found: dict[str, int] = {}
    ours, theirs = _loose(changed), _loose(original)
    for key, (file, name) in ours.items():
        if key not in theirs:
            found[f"{_stem(key)}: not in the base"] = found.get(f"{_stem(key)}: not in the base", 0) + 1
        elif tensorfile.raw(file, name) != tensorfile.raw(*theirs[key]):
            found[f"{_stem(key)}: differs"] = found.get(f"{_stem(key)}: differs", 0) + 1
    return {what: f"{n} {'tensor' if n == 1 else 'tensors'}" for what, n in found.items()}


def _loose(checkpoint: Checkpoint) -> dict[str, tuple[Path, str]]:
    known = {(held.file, held.key) for kept in (checkpoint.held, checkpoint.biases) for held in kept.values()}
    files = dict(checkpoint.headers)
    if checkpoint.where.is_dir():
        files |= {file: tensorfile.read_header(file) for file in sorted(checkpoint.where.glob("vae/*.safetensors"))}
    return {
        f"{file.parent.name + '.' if checkpoint.where.is_dir() else ''}{key}": (file, key)
        for file, header in files.items() for key in header.tensors if (file, key) not in known
    }  # fmt: skip


def _stem(key: str) -> str:
    return key.partition(".")[0]


def _require_related(tuned: str | Path, base: str | Path, tally: _Tally, force: bool, found: bool) -> None:
    if tally.difference == 0 and not tally.full:
        rest = next((f"; beside them, {name} ({what})" for name, what in tally.uncaptured.items()), "")
        raise InputError(f"no weight differs from the base{rest}", where=tuned, expected="a changed checkpoint",
                         advice="check that the two files are not the same model")  # fmt: skip
    if tally.cosine < UNRELATED and not force:
        raise InputError(
            f"the two are not related: their weights' cosine is {tally.cosine:.2f}", where=f"{tuned}, {base}",
            expected="a checkpoint and the base it was trained from", advice="check --base, or --force",
        )  # fmt: skip
    if not found:
        raise InputError("the two differ by the rounding of their types only", where=tuned, expected="a changed checkpoint",
                         advice="nothing is to be extracted")  # fmt: skip


def _kept_energy(layers: list[Layer], tally: _Tally) -> float:
    """Over all matrices, those included whose whole difference is rounding."""
    lost = math.fsum(layer.error**2 for layer in layers) + tally.noise
    return 1 - lost / tally.difference if tally.difference else 1.0


def _tell_all(
    tell: Tell, layers: list[Layer], spectra: Mapping[tuple[str, ...], Shelved], tally: _Tally, kept: float
) -> None:
    if tally.uncaptured:
        shown = "; ".join(f"{name}: {why}" for name, why in list(tally.uncaptured.items())[:5])
        tell(Warn(f"{len(tally.uncaptured)} differences are not in the LoRA ({shown})"))
    found = zip(layers, spectra.values(), strict=True)
    if capped := [layer.path for layer, one in found if layer.rank == MOST_RANK and one.values.rest > 0]:
        tell(Warn(f"{len(capped)} layers have more than {MOST_RANK} ranks; the rest of them is left out ({capped[0]})"))
    tell(Note(f"the LoRA keeps {kept:.2%} of the energy of the difference"))


def _wide(weight: torch.Tensor) -> torch.Tensor:

    return weight.to(computing(weight))
