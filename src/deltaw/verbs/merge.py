"""`deltaw merge`: ΔW = Σ wᵢ·ΔWᵢ, exact by concatenation; smaller only on request, and then by the optimum.

Any mix of ranks, alphas, dialects and algorithms; what is written is loaded again and compared on random probes.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from deltaw import families, formats, tensorfile
from deltaw.adapters.scaling import is_finite
from deltaw.algebra import budget, combine, probe
from deltaw.algebra.budget import Layer
from deltaw.algebra.combine import Sum, Term, Weights
from deltaw.delta import Delta, Update
from deltaw.errors import InputError, UnverifiedError, UsageError
from deltaw.events import Note, Phase, Saved, Tell, Tick, Warn, silent
from deltaw.families.checkpoint import open_checkpoint
from deltaw.families.listing import Shapes
from deltaw.formats import saving

if TYPE_CHECKING:
    import torch

METHODS = ("sum", "ties", "dare")


@dataclass(frozen=True)
class MergeReport:
    """What was merged and how exact it is.

    Args:
        path: the written file.
        n_bytes: its size.
        family: of all inputs.
        layers: module by module, what was kept and what was left out.
        error: ‖left out‖ / ‖sum‖ over all modules, rounding to the written dtype included (measured on probes).
        energy: share of the squared norm that was kept.
    """

    path: Path
    n_bytes: int
    family: str
    layers: tuple[Layer, ...]
    error: float
    energy: float


def merge(
    files: Sequence[tuple[str | Path, float]],
    out: str | Path,
    *,
    rank: int | None = None,
    energy: float | None = None,
    size: int | str | None = None,
    method: str = "sum",
    density: float = 0.5,
    weights: Mapping[str, Mapping[str, float]] | None = None,
    base: str | Path | None = None,
    dialect: str = "kohya",
    dtype: str | None = None,
    seed: int = 0,
    strict: bool = False,
    tell: Tell = silent,
) -> MergeReport:
    """Merges LoRAs of one family into one file.

    Args:
        files: path and weight each; weights may be 0 and negative, a file may stand twice.
        out: what to write; never one of the inputs.
        rank, energy, size: at most one budget (`budget.parse`); without one the sum is exact.
        method: "sum", or "ties" / "dare" for conflicts (these need a budget, since their result has full rank).
        density: share of entries that ties and dare keep.
        weights: file stem (or "*") to glob patterns of module paths to factors on top of the file's weight.
        base: a checkpoint, for changes that depend on W (DoRA, OFT, (IA)³, GLoRA).
        dialect: of the written file.
        dtype: "float32", "float16" or "bfloat16"; by default float32 where exact, the inputs' widest where cut.
        seed: of dare's dropping and of the probes.
        strict: inputs that are not used whole are refused.
        tell: hears events.

    Raises:
        UsageError: options that contradict each other, or `out` is an input.
        InputError: an input cannot be used, or the families or widths differ, or nothing is left.
        UnverifiedError: the written file does not do what the sum does.
    """
    wanted = budget.parse(rank, energy, size)
    _require_usable(files, out, method, density, wanted.is_set)
    terms = load_terms(files, weights or {}, strict, tell)
    shapes = common_shapes([term.delta for term in terms], [str(path) for path, _ in files])
    kind = written_dtype(dtype, terms, exact=not wanted.is_set)
    generator = seeded(seed)
    with ExitStack() as stack:
        weight: Weights | None = (
            stack.enter_context(open_checkpoint(base).reader()).weight if base is not None else None
        )
        sums = _sums(terms, shapes, method, density, generator, weight, tell)
        updates, layers = reduce(sums, wanted, kind, generator)
        if not updates:
            raise InputError("nothing is left to write", where=out, expected="a weight other than 0, a budget above one rank",
                             advice="check the weights and the budget")  # fmt: skip
        merged = Delta(terms[0].delta.family, updates, _triggers(terms), _metadata(terms), _embeddings(terms))
        error, n_bytes = write_verified(merged, sums, layers, shapes, Path(out), dialect, generator)
    tell(Saved(str(out), n_bytes, f"{len(updates)} modules, relative error {error:.1e}"))
    return MergeReport(Path(out), n_bytes, merged.family, tuple(layers), error, budget.overall(layers)[1])


def reduce(
    sums: Mapping[str, Sum], wanted: budget.Budget, dtype: torch.dtype, generator: torch.Generator
) -> tuple[dict[str, Update], list[Layer]]:
    """The sums as updates: as they are, or cut to one budget over all modules that have a rank."""
    if not wanted.is_set:
        exact = {path: made for path, total in sums.items() if (made := total.exact(dtype)) is not None}
        return exact, [_exact_layer(path, total) for path, total in sums.items()]
    matrices = {path: total for path, total in sums.items() if len(total.shape) > 1 and _changes_weight(total)}
    spectra = {path: total.spectrum(wanted.rank, generator) for path, total in matrices.items()}
    updates, layers = budget.cut(spectra, {path: total.shape for path, total in matrices.items()}, wanted, dtype)
    for path, total in sums.items():
        if path not in matrices:
            if (made := total.exact(dtype)) is not None:
                updates[path] = made
                layers.append(_exact_layer(path, total))
        elif total.bias is not None:
            kept = updates.get(path, Update("full", {}))
            updates[path] = Update(kept.algorithm, {**kept.tensors, "bias": total.bias.to(dtype)})
    return updates, layers


def write_verified(
    merged: Delta, sums: Mapping[str, Sum], layers: Sequence[Layer], shapes: Shapes, out: Path, dialect: str,
    generator: torch.Generator,
) -> tuple[float, int]:  # fmt: skip
    """Writes, loads again and compares on probes before the file takes its name; the measured error and the size.

    Raises:
        InputError: numbers are too large for the dtype.
        UnverifiedError: the file does something else than what was asked for.
    """
    for path, update in merged.updates.items():
        if not all(map(is_finite, update.tensors.values())):
            raise InputError(f"{path} is too large for the dtype, or was not finite", where=out, expected="finite numbers",
                             advice="choose --dtype float32, or smaller weights")  # fmt: skip
    if formats.named(dialect).NAME == "peft":
        formats.save(merged, out, dialect, shapes=shapes)
        return _verify(out, sums, layers, shapes, generator), sum(
            f.stat().st_size for f in out.rglob("*") if f.is_file()
        )
    with tensorfile.replacing(out) as temporary:
        formats.save(merged, temporary, dialect, shapes=shapes)
        error = _verify(temporary, sums, layers, shapes, generator)
    return error, out.stat().st_size


def _verify(
    path: Path, sums: Mapping[str, Sum], layers: Sequence[Layer], shapes: Shapes, generator: torch.Generator
) -> float:
    written, _ = formats.load(path, shapes=shapes)
    promised = {layer.path: layer.error for layer in layers}
    lost = whole = 0.0
    for name, total in sums.items():
        x = probe.probes(math.prod(total.shape[1:]), generator)
        off, aim = probe.difference(written.updates.get(name), total, x)
        allowed = promised.get(name, 0.0) * math.sqrt(x.shape[1]) * 2.5 + probe.rounding(
            written.updates.get(name), total, x
        )
        if not off <= allowed:
            raise UnverifiedError(f"the written change of {name} is off by {off:.3g} of {aim:.3g}", where=path,
                                  expected=f"at most {allowed:.3g}", advice="choose --dtype float32; if it stays, report it")  # fmt: skip
        lost, whole = lost + off**2, whole + aim**2
    return math.sqrt(lost / whole) if whole else 0.0


def common_shapes(deltas: Sequence[Delta], names: Sequence[str]) -> dict[str, tuple[int, ...]]:
    """The base's weight shapes that all changes fit.

    Raises:
        InputError: they are of different families or widths; all are named.
    """
    kinds = {delta.family for delta in deltas}
    if len(kinds) > 1:
        each = ", ".join(
            f"{Path(n).name}: {families.named(d.family).title}" for n, d in zip(names, deltas, strict=True)
        )
        raise InputError(
            f"they belong to different bases ({each})", expected="changes of one base", advice="leave the others out"
        )
    everything = Delta(deltas[0].family, {path: update for delta in deltas for path, update in delta.updates.items()})
    shapes = dict(saving.base_shapes(everything, families.named(deltas[0].family)))
    for delta, name in zip(deltas, names, strict=True):
        for path, update in delta.updates.items():
            if path not in shapes:
                raise InputError(f"the base that the other files fit has no module {path}", where=name,
                                 expected="changes of one base", advice="check which base each was trained on")  # fmt: skip
            if why := saving.problem_of(update, shapes[path]):
                raise InputError(f"{path} has another width than in the other files ({why})", where=name,
                                 expected="changes of one base", advice="check which base each was trained on")  # fmt: skip
    return shapes


def _require_usable(
    files: Sequence[tuple[str | Path, float]], out: str | Path, method: str, density: float, cut: bool
) -> None:
    if not files:
        raise UsageError("nothing to merge")
    if method not in METHODS:
        raise UsageError(f"no method is called {method!r}", where="--method", expected=", ".join(METHODS))
    if method != "sum" and not cut:
        raise UsageError(
            f"{method} makes changes of full rank", where="--method", expected="--rank, --energy or --size with it"
        )
    if not 0 < density <= 1:
        raise UsageError(
            f"density {density} keeps nothing or more than all", where="--density", expected="above 0, up to 1"
        )
    for path, weight in files:
        if not math.isfinite(weight):
            raise UsageError(f"the weight {weight} is no number", where=path)
        require_other(path, out)


def require_other(path: str | Path, out: str | Path) -> None:
    """Refuses to write a result over an input.

    Raises:
        UsageError: both are the same file.
    """
    if Path(path).resolve() == Path(out).resolve() or (
        Path(out).exists() and Path(path).exists() and Path(out).samefile(path)
    ):
        raise UsageError("the output is an input", where=out, expected="another name", advice="choose another -o")


def load_terms(
    files: Sequence[tuple[str | Path, float]], weights: Mapping[str, Mapping[str, float]], strict: bool, tell: Tell,
    shapes: Shapes | None = None,
) -> list[Term]:  # fmt: skip
    """Loads every file with its weight; what is not used of one is told.

    Raises:
        UsageError: `weights` names a file that is not there.
        InputError: a file cannot be used.
    """
    stems = {Path(path).stem for path, _ in files}
    if unknown := [name for name in weights if name not in (*stems, "*")]:
        raise UsageError(
            f"no file is called {unknown[0]!r}", where="--weights", expected=", ".join(("*", *sorted(stems)))
        )
    seen: set[Path] = set()
    terms: list[Term] = []
    for path, weight in files:
        delta, match = formats.load(path, strict=strict, shapes=shapes)
        for line in match.losses() if match.partial else ():
            tell(Warn(f"{path}: {line}"))
        if Path(path).resolve() in seen:
            tell(Note(f"{path} is given more than once; its weights add up"))
        seen.add(Path(path).resolve())
        patterns = {**weights.get(Path(path).stem, {}), **weights.get("*", {})}
        terms.append(Term(delta, combine.by_pattern(weight, patterns)))
    return terms


def _sums(
    terms: Sequence[Term], shapes: Mapping[str, tuple[int, ...]], method: str, density: float,
    generator: torch.Generator, weight: Weights | None, tell: Tell,
) -> dict[str, Sum]:  # fmt: skip
    everything = combine.paths(terms)
    tell(Phase("sum", len(everything), "modules"))
    sums: dict[str, Sum] = {}
    for i, path in enumerate(everything):
        try:
            if method == "sum":
                sums[path] = combine.sum_of(path, terms, shapes[path], weight)
            else:
                sums[path] = combine.resolved(path, terms, shapes[path], method, density, generator, weight)
        except ValueError as error:
            raise InputError(
                str(error), where=path, expected="the base it was trained on", advice="name it with --base"
            ) from error
        tell(Tick(i + 1))
    return sums


def _exact_layer(path: str, total: Sum) -> Layer:
    n = total.factors[0].shape[1] if total.factors is not None else 0
    return Layer(path, n, n, combine.norm_of(total), 0.0)


def _changes_weight(total: Sum) -> bool:
    return total.dense is not None or (total.factors is not None and total.factors[0].shape[1] > 0)


def written_dtype(name: str | None, terms: Sequence[Term], exact: bool) -> torch.dtype:
    """The dtype of the written factors: as named, else float32 where exact and the inputs' widest where cut.

    Raises:
        UsageError: none is called so.
    """
    import torch

    known = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
    if name is not None and name not in known:
        raise UsageError(f"no dtype is called {name!r}", where="--dtype", expected=", ".join(known))
    if name is not None:
        return known[name]
    found = {
        t.dtype for term in terms for u in term.delta.updates.values() for n, t in u.tensors.items() if n != "alpha"
    }
    common = torch.float16
    for dtype in found & {torch.float32, torch.float16, torch.bfloat16}:
        common = torch.promote_types(common, dtype) if dtype != torch.bfloat16 or len(found) > 1 else dtype
    return torch.float32 if exact else common


def seeded(seed: int) -> torch.Generator:
    """The only source of randomness of a verb."""
    import torch

    return torch.Generator().manual_seed(seed)


def _triggers(terms: Sequence[Term]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(word for term in terms for word in term.delta.trigger))


def _embeddings(terms: Sequence[Term]) -> dict[str, Mapping[str, torch.Tensor]]:
    """Every file's token vectors; they are not weighted, a token is there or not.

    Raises:
        InputError: two files have different vectors for one token.
    """
    found: dict[str, Mapping[str, torch.Tensor]] = {}
    for term in terms:
        for token, parts in term.delta.embeddings.items():
            own = found.setdefault(token, parts)
            if set(own) != set(parts) or any(not own[name].equal(vector) for name, vector in parts.items()):
                raise InputError(f"two files have different vectors for the token {token!r}", expected="one each",
                                 advice="rename the token in one of them")  # fmt: skip
    return found


def _metadata(terms: Sequence[Term]) -> dict[str, str]:
    """What all inputs say alike; what they say differently would be untrue of the sum."""
    first, *others = (term.delta.metadata for term in terms)
    dims = ("ss_network_dim", "ss_network_alpha", "sshs_model_hash", "sshs_legacy_hash", "modelspec.hash_sha256")
    return {k: v for k, v in first.items() if all(other.get(k) == v for other in others) and k not in dims}
