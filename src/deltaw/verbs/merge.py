"""`deltaw merge`: ΔW = Σ wᵢ·ΔWᵢ, exact by concatenation; smaller only on request, and then by the optimum.

Any mix of ranks, alphas, dialects and algorithms; what is written is loaded again and compared on random probes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from deltaw.algebra import budget, combine, inputs, result
from deltaw.algebra.budget import Layer
from deltaw.algebra.combine import Sum, Term
from deltaw.algebra.inputs import Inputs
from deltaw.delta import Delta
from deltaw.errors import InputError, UsageError
from deltaw.events import Saved, Tell, silent

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
    _require_usable(files, method, density, wanted.is_set)
    inputs.require_output(out, [path for path, _ in files], folder=dialect == "peft")
    generator = inputs.seeded(seed)
    with inputs.opened(files, tell, weights=weights, strict=strict, base=base) as given:
        first = given.terms[0].delta
        frame = Delta(first.family, {}, _triggers(given.terms), _metadata(given.terms), _embeddings(given.terms))
        written = result.write(
            combine.paths(given.terms), _maker(given, method, density, generator), frame, Path(out), wanted=wanted,
            dtype=given.written_dtype(dtype, exact=not wanted.is_set), dialect=dialect, shapes=given.shapes,
            generator=generator, tell=tell,
        )  # fmt: skip
    tell(Saved(str(out), written.n_bytes, f"{written.n_modules} modules, relative error {written.error:.1e}"))
    kept = budget.overall(written.layers)[1]
    return MergeReport(Path(out), written.n_bytes, first.family, written.layers, written.error, kept)


def _require_usable(files: Sequence[tuple[str | Path, float]], method: str, density: float, cut: bool) -> None:
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


def _maker(given: Inputs, method: str, density: float, generator: torch.Generator) -> Callable[[str], Sum]:
    def sum_of(path: str) -> Sum:
        try:
            if method == "sum":
                return combine.sum_of(path, given.terms, given.shapes[path], given.weight)
            return combine.resolved(path, given.terms, given.shapes[path], method, density, generator, given.weight)
        except ValueError as error:
            raise inputs.needs_base(error, path) from error

    return sum_of


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
