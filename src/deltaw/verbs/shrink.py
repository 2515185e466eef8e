"""`deltaw shrink`: the best smaller LoRA for a budget, with the error that it costs."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from deltaw import formats
from deltaw.algebra import budget, combine
from deltaw.algebra.budget import Layer
from deltaw.algebra.combine import Term
from deltaw.delta import Delta
from deltaw.errors import InputError
from deltaw.events import Phase, Saved, Tell, Warn, silent
from deltaw.families.checkpoint import open_checkpoint
from deltaw.verbs.merge import common_shapes, reduce, require_other, seeded, write_verified, written_dtype


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
    require_other(file, out)
    wanted = budget.parse(rank, energy, size)
    wanted = wanted if wanted.is_set else budget.Budget(energy=1.0)
    delta, match = formats.load(file, strict=strict)
    for line in match.losses() if match.partial else ():
        tell(Warn(f"{file}: {line}"))
    terms = [Term(delta, lambda _path: 1.0)]
    shapes = common_shapes([delta], [str(file)])
    generator = seeded(0)
    tell(Phase("spectra", len(delta.updates), "modules"))
    with ExitStack() as stack:
        weight = stack.enter_context(open_checkpoint(base).reader()).weight if base is not None else None
        try:
            sums = {path: combine.sum_of(path, terms, shapes[path], weight) for path in delta.updates}
        except ValueError as error:
            raise InputError(
                str(error), where=file, expected="the base it was trained on", advice="name it with --base"
            ) from error
    updates, layers = reduce(sums, wanted, written_dtype(dtype, terms, exact=False), generator)
    if not updates:
        raise InputError("nothing is left to write", where=out, expected="a budget above one rank", advice="allow more")
    made = Delta(delta.family, updates, delta.trigger, _metadata(delta), delta.embeddings)
    own = next(iter(match.dialects))
    error, n_bytes = write_verified(made, sums, layers, shapes, Path(out), dialect or _holding(own), generator)
    before = sum(
        f.stat().st_size for f in ([Path(file)] if Path(file).is_file() else Path(file).rglob("*")) if f.is_file()
    )
    tell(Saved(str(out), n_bytes, f"{len(updates)} modules, relative error {error:.1e}"))
    return ShrinkReport(Path(out), before, n_bytes, tuple(layers), error, budget.overall(layers)[1])


def _holding(dialect: str) -> str:
    """The dialect to write for one that was read: itself, where it holds a rank for each module."""
    return dialect if dialect in ("kohya", "diffusers", "peft", "comfy") else "kohya"


def _metadata(delta: Delta) -> dict[str, str]:
    """All but what named the old tensors' size and hash."""
    stale = ("ss_network_dim", "ss_network_alpha", "sshs_model_hash", "sshs_legacy_hash", "modelspec.hash_sha256")
    return {key: value for key, value in delta.metadata.items() if key not in stale}
