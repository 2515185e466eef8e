"""`deltaw convert`: a change in another dialect, tensors identical; or as plain LoRA, with the error that it costs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from deltaw import formats, tensorfile
from deltaw.algebra.inputs import require_output
from deltaw.delta import Delta
from deltaw.errors import UnverifiedError, UsageError
from deltaw.events import Note, Saved, Tell, Warn, silent
from deltaw.families.listing import Shapes
from deltaw.formats.match import Match

if TYPE_CHECKING:
    import torch
from deltaw.verbs.shrink import ShrinkReport, shrink


@dataclass(frozen=True)
class ConvertReport:
    """What was converted.

    Args:
        path: the written file or folder.
        n_bytes: its size.
        dialect: that it is in.
        match: what became of each key of the input.
        error: 0.0 for a change of dialect; of the approximation where plain LoRA was asked for.
    """

    path: Path
    n_bytes: int
    dialect: str
    match: Match
    error: float = 0.0


def convert(
    file: str | Path,
    out: str | Path,
    *,
    to: str,
    dialect: str | None = None,
    rank: int | None = None,
    energy: float | None = None,
    size: int | str | None = None,
    base: str | Path | None = None,
    strict: bool = False,
    tell: Tell = silent,
) -> ConvertReport:
    """Writes a LoRA in another dialect, every tensor bit for bit, or refuses by name what that dialect cannot hold.

    Args:
        file: the LoRA.
        out: what to write; never `file`.
        to: a dialect's name, or "lora": LoHa, LoKr, DoRA, OFT and full changes become plain LoRA.
        dialect: of the file that `to="lora"` writes, kohya by default.
        rank, energy, size: the budget of `to="lora"`; energy 0.999 by default.
        base: the checkpoint that DoRA, OFT, (IA)³ and GLoRA need for `to="lora"`.
        strict: an input that is not used whole is refused.
        tell: hears events.

    Raises:
        UsageError: no dialect is called so, or `out` is the input.
        InputError: the input cannot be used, or the dialect cannot hold it.
        UnverifiedError: the written file reads back as something else.
    """
    require_output(out, [file], folder="peft" in (to, dialect))
    if to == "lora":
        return _to_lora(file, out, dialect or "kohya", (rank, energy, size), base, strict, tell)
    if dialect is not None or (rank, energy, size) != (None, None, None):
        raise UsageError("a budget or another dialect goes with --to lora only", where=f"--to {to}")
    target = formats.named(to)
    with formats.lazy(file, strict=strict) as given:
        delta, match = given.delta, given.match
        for line in match.losses() if match.partial else ():
            tell(Warn(f"{file}: {line}"))
        for line in match.notes:
            tell(Note(line))
        if target.NAME == "peft":
            n_bytes = formats.save(delta, out, to)
            require_same(delta, out)
        else:
            with tensorfile.replacing(out) as temporary:
                n_bytes = formats.save(delta, temporary, to)
                require_same(delta, temporary)
    tell(Saved(str(out), n_bytes, f"{len(delta.updates)} modules in {to}"))
    return ConvertReport(Path(out), n_bytes, to, match)


def _to_lora(
    file: str | Path, out: str | Path, dialect: str, given: tuple[int | None, float | None, int | str | None],
    base: str | Path | None, strict: bool, tell: Tell,
) -> ConvertReport:  # fmt: skip
    rank, energy, size = given if given != (None, None, None) else (None, 0.999, None)
    report: ShrinkReport = shrink(
        file, out, rank=rank, energy=energy, size=size, base=base, dialect=dialect, strict=strict, tell=tell
    )
    with formats.lazy(file) as opened:
        match = opened.match
    return ConvertReport(report.path, report.n_bytes, dialect, match, report.error)


def require_same(delta: Delta, path: str | Path, shapes: Shapes | None = None) -> None:
    """Loads a written file and compares every tensor bit for bit.

    Raises:
        UnverifiedError: something reads back as something else.
    """
    with formats.lazy(path, shapes=shapes) as back:
        for name, update in delta.updates.items():
            theirs = back.delta.updates.get(name)
            alike = theirs is not None and theirs.algorithm == update.algorithm
            if theirs is None or not alike or not _equal(theirs.tensors, update.tensors):
                raise UnverifiedError(f"{name} reads back as something else", where=path, expected="the same tensors",
                                      advice="keep the input and report it")  # fmt: skip


def _equal(theirs: Mapping[str, torch.Tensor], ours: Mapping[str, torch.Tensor]) -> bool:
    return set(theirs) == set(ours) and all(theirs[name].equal(tensor) for name, tensor in ours.items())
