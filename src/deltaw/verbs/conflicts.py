"""`deltaw merge --report`: before merging, where do the changes meet, and do they pull together or apart.

The cosine of two changes of a weight says how their sum behaves: ‖A + B‖² = ‖A‖² + ‖B‖² + 2·cos·‖A‖·‖B‖. Near 0
they leave each other alone, near -1 they undo each other, near 1 they double.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from deltaw.adapters.overlap import Overlap
from deltaw.algebra import combine, inputs
from deltaw.algebra.inputs import Inputs
from deltaw.errors import UsageError
from deltaw.events import Note, Phase, Table, Tell, Tick, Warn, silent
from deltaw.verbs.inspect import block_of

FIGHTING = -0.2
"""Below this cosine two changes of a block take noticeably from each other (a tenth of the sum's norm and more)."""


@dataclass(frozen=True)
class Meeting:
    """How two changes meet.

    Args:
        names: the two files.
        layers: module to overlap, for modules that both change.
        blocks: block to cosine over its modules.
        cosine: over all modules that both change.
        shared: share of the two changes' energy that lies in modules which both change.
    """

    names: tuple[str, str]
    layers: Mapping[str, Overlap]
    blocks: Mapping[str, float]
    cosine: float
    shared: float

    @property
    def fighting(self) -> tuple[str, ...]:
        """Blocks whose changes undo each other, the worst first."""
        return tuple(sorted((b for b, c in self.blocks.items() if c < FIGHTING), key=self.blocks.__getitem__))


@dataclass(frozen=True)
class ConflictReport:
    """Every pair of files, in the order given.

    Args:
        pairs: one a pair.
        energies: file name to ‖ΔW‖, its weight included.
    """

    pairs: tuple[Meeting, ...]
    energies: Mapping[str, float]


def conflicts(
    files: Sequence[tuple[str | Path, float]],
    *,
    weights: Mapping[str, Mapping[str, float]] | None = None,
    base: str | Path | None = None,
    tell: Tell = silent,
) -> ConflictReport:
    """Compares every pair of LoRAs of one family, weights included.

    Args:
        files: two or more, path and weight each.
        weights: as for `merge`.
        base: a checkpoint, for changes that depend on W.
        tell: hears events.

    Raises:
        UsageError: fewer than two files.
        InputError: a file cannot be used, or they belong to different bases.
    """
    if len(files) < 2:
        raise UsageError("a conflict takes two files", expected="two or more")
    names = [f"{Path(path).stem}:{weight:g}" for path, weight in files]
    with inputs.opened(files, tell, weights=weights, base=base) as given:
        squares, layers = _compared(given, tell)
    whole = [math.fsum(own.values()) for own in squares]
    report = ConflictReport(
        tuple(_meeting((names[a], names[b]), found, whole[a] + whole[b]) for (a, b), found in layers.items()),
        {name: math.sqrt(own) for name, own in zip(names, whole, strict=True)},
    )
    _tell(report, tell)
    return report


def _compared(given: Inputs, tell: Tell) -> tuple[list[dict[str, float]], dict[tuple[int, int], dict[str, Overlap]]]:
    """Every file's squared norms by module, and every pair's overlaps; each module is read once."""
    everything = combine.paths(given.terms)
    tell(Phase("compare", len(everything), "modules"))
    squares: list[dict[str, float]] = [{} for _ in given.terms]
    layers: dict[tuple[int, int], dict[str, Overlap]] = {
        p: {} for p in itertools.combinations(range(len(given.terms)), 2)
    }
    for i, path in enumerate(everything):
        owners = [k for k, term in enumerate(given.terms) if path in term.delta.updates]
        try:
            sums = {k: combine.sum_of(path, [given.terms[k]], given.shapes[path], given.weight) for k in owners}
        except ValueError as error:
            raise inputs.needs_base(error) from error
        for k, total in sums.items():
            squares[k][path] = combine.norm_of(total) ** 2
        for a, b in itertools.combinations(owners, 2):
            layers[a, b][path] = combine.relate(sums[a], sums[b])
        tell(Tick(i + 1))
    return squares, layers


def _meeting(names: tuple[str, str], layers: Mapping[str, Overlap], whole: float) -> Meeting:
    grouped: dict[str, list[Overlap]] = {}
    for path, overlap in layers.items():
        grouped.setdefault(block_of(path), []).append(overlap)
    shared = math.fsum(o.energy_a + o.energy_b for o in layers.values())
    blocks = {block: _cosine(found) for block, found in grouped.items()}
    return Meeting(names, layers, blocks, _cosine(list(layers.values())), shared / whole if whole else 0.0)


def _cosine(overlaps: Sequence[Overlap]) -> float:
    size = math.sqrt(math.fsum(o.energy_a for o in overlaps) * math.fsum(o.energy_b for o in overlaps))
    return math.fsum(o.inner for o in overlaps) / size if size else 0.0


def _tell(report: ConflictReport, tell: Tell) -> None:
    for pair in report.pairs:
        rows = tuple(
            (block, f"{cosine:+.3f}", "undo each other" if cosine < FIGHTING else "double" if cosine > 0.5 else "")
            for block, cosine in sorted(pair.blocks.items(), key=lambda item: item[1])
        )
        tell(Table(f"{pair.names[0]} and {pair.names[1]}", ("block", "cosine", ""), rows))
        tell(
            Note(
                f"{pair.names[0]} and {pair.names[1]}: cosine {pair.cosine:+.3f}, {pair.shared:.0%} of their energy in shared modules"
            )
        )
        if pair.fighting:
            tell(
                Warn(
                    f"{pair.names[0]} and {pair.names[1]} undo each other in {', '.join(pair.fighting[:4])}; lower one there (--weights)"
                )
            )
