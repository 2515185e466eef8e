"""`deltaw shrink`: the best smaller LoRA for a budget, with the error that it costs."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from deltaw.algebra import budget, combine, inputs, result
from deltaw.algebra.budget import Layer
from deltaw.algebra.combine import Sum
from deltaw.delta import Delta
from deltaw.events import Saved, Tell, silent


@dataclass(frozen=True)
class ShrinkReport:
    """What became of a LoRA under a budget.

    Args:
        path: the written file.
        n_bytes_before, n_bytes: the sizes.
        layers: module by module, what was kept and what was left out.
        error: ‖left out‖ / ‖whole‖ over all modules, rounding included (measured on probes).
        energy: share of the squared norm that was kept.
    """

    path: Path
    n_bytes_before: int
    n_bytes: int
    layers: tuple[Layer, ...]
    error: float
    energy: float


def shrink(
    file: str | Path,
    out: str | Path,
    *,
    rank: int | None = None,
    energy: float | None = None,
    size: int | str | None = None,
    base: str | Path | None = None,
    dialect: str | None = None,
    dtype: str | None = None,
    strict: bool = False,
    tell: Tell = silent,
) -> ShrinkReport:
    """Cuts a LoRA (or any other algorithm's change) to plain LoRA factors of a budget.

    Args:
        file: the LoRA.
        out: what to write; never `file`.
        rank, energy, size: at most one budget; without one, nothing but numerically empty ranks goes.
        base: a checkpoint, for changes that depend on W (DoRA, OFT, (IA)³, GLoRA).
        dialect: of the written file; by default that of the input.
        dtype: of the written factors; by default the input's.
        strict: an input that is not used whole is refused.
        tell: hears events.

    Raises:
        UsageError: two budgets, or `out` is the input.
        InputError: the input cannot be used, or needs its base.
        UnverifiedError: the written file does not do what it should.
    """
    inputs.require_output(out, [file], folder=dialect in (None, "peft"))
    wanted = budget.parse(rank, energy, size)
    wanted = wanted if wanted.is_set else budget.Budget(energy=1.0)
    with inputs.opened([(file, 1.0)], tell, strict=strict, base=base) as given:
        delta = given.terms[0].delta

        def sum_of(path: str) -> Sum:
            try:
                return combine.sum_of(path, given.terms, given.shapes[path], given.weight)
            except ValueError as error:
                raise inputs.needs_base(error, file) from error

        written = result.write(
            combine.paths(given.terms), sum_of, replace(delta, metadata=_metadata(delta)), Path(out), wanted=wanted,
            dtype=given.written_dtype(dtype, exact=False), dialect=dialect or _holding(given.dialects[0]), shapes=given.shapes,
            generator=inputs.seeded(0), tell=tell,
        )  # fmt: skip
    before = sum(
        f.stat().st_size for f in ([Path(file)] if Path(file).is_file() else Path(file).rglob("*")) if f.is_file()
    )
    tell(Saved(str(out), written.n_bytes, f"{written.n_modules} modules, relative error {written.error:.1e}"))
    kept = budget.overall(written.layers)[1]
    return ShrinkReport(Path(out), before, written.n_bytes, written.layers, written.error, kept)


def _holding(dialect: str) -> str:
    """The dialect to write for one that was read: itself, where it holds a rank for each module."""
    return dialect if dialect in ("kohya", "diffusers", "peft", "comfy") else "kohya"


def _metadata(delta: Delta) -> dict[str, str]:
    """All but what named the old tensors' size and hash."""
    stale = ("ss_network_dim", "ss_network_alpha", "sshs_model_hash", "sshs_legacy_hash", "modelspec.hash_sha256")
    return {key: value for key, value in delta.metadata.items() if key not in stale}
