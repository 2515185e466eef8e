"""The changes that a verb is given: opened, weighted, of one base; their tensors are read when they are asked for."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from deltaw import atomic, families, formats, tensorfile
from deltaw.algebra import combine
from deltaw.algebra.combine import Term, Weights
from deltaw.errors import InputError, UsageError
from deltaw.events import Note, Tell, Warn
from deltaw.families import listing
from deltaw.families.checkpoint import open_checkpoint
from deltaw.families.listing import Shapes
from deltaw.formats import Opened

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Inputs:
    """Changes of one base.

    Args:
        terms: one a file, with its weights.
        shapes: of the base's weights.
        dialects: the first that each file speaks.
        dtypes: safetensors' names of the factors' types.
        weight: reads the base's weights, where a base was named.
    """

    terms: tuple[Term, ...]
    shapes: Shapes
    dialects: tuple[str, ...]
    dtypes: frozenset[str]
    weight: Weights | None

    def written_dtype(self, name: str | None, exact: bool) -> torch.dtype:
        """The dtype of the written factors: as named, else float32 where exact and the inputs' widest where cut.

        Raises:
            UsageError: none is called so.
        """
        import torch

        if name is not None:
            return dtype_named(name)
        found = {tensorfile.torch_dtype(dtype) for dtype in self.dtypes}
        common = torch.float16
        for dtype in found & {torch.float32, torch.float16, torch.bfloat16}:
            common = torch.promote_types(common, dtype) if dtype != torch.bfloat16 or len(found) > 1 else dtype
        return torch.float32 if exact else common


def dtype_named(name: str) -> torch.dtype:
    """The dtype of factors that a user calls by this name.

    Raises:
        UsageError: none is called so.
    """
    import torch

    known = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
    if name not in known:
        raise UsageError(f"no dtype is called {name!r}", where="--dtype", expected=", ".join(known))
    return known[name]


@contextmanager
def opened(
    files: Sequence[tuple[str | Path, float]], tell: Tell, *, weights: Mapping[str, Mapping[str, float]] | None = None,
    strict: bool = False, shapes: Shapes | None = None, base: str | Path | None = None,
) -> Iterator[Inputs]:  # fmt: skip
    """Opens every file with its weight; what is not used of one is told.

    Args:
        files: path and weight each.
        tell: hears events.
        weights: file stem (or "*") to glob patterns of module paths to factors on top of the file's weight.
        strict: files that are not used whole are refused.
        shapes: of the base that they are meant for; else that of the known ones which they fit best.
        base: a checkpoint, for changes that depend on W.

    Raises:
        UsageError: `weights` names a file that is not there.
        InputError: a file cannot be used, or they belong to different bases.
    """
    weights = weights or {}
    stems = {Path(path).stem for path, _ in files}
    if unknown := [name for name in weights if name not in (*stems, "*")]:
        raise UsageError(
            f"no file is called {unknown[0]!r}", where="--weights", expected=", ".join(("*", *sorted(stems)))
        )
    with ExitStack() as stack:
        found: list[Opened] = []
        terms: list[Term] = []
        seen: set[Path] = set()
        for path, weight in files:
            one = stack.enter_context(formats.lazy(path, strict=strict, shapes=shapes))
            for line in one.match.losses() if one.match.partial else ():
                tell(Warn(f"{path}: {line}"))
            if Path(path).resolve() in seen:
                tell(Note(f"{path} is given more than once; its weights add up"))
            seen.add(Path(path).resolve())
            patterns = {**weights.get(Path(path).stem, {}), **weights.get("*", {})}
            found.append(one)
            terms.append(Term(one.delta, combine.by_pattern(weight, patterns)))
        read = stack.enter_context(open_checkpoint(base).reader()).weight if base is not None else None
        dtypes = frozenset(dtype for one in found for dtype in one.dtypes())
        common = shapes if shapes is not None else _common_shapes(found, [path for path, _ in files])
        dialects = tuple(next(iter(one.match.dialects)) for one in found)
        yield Inputs(tuple(terms), common, dialects, dtypes, read)


def _common_shapes(found: Sequence[Opened], names: Sequence[str | Path]) -> Shapes:
    """The base's weight shapes that all changes fit.

    Raises:
        InputError: they are of different families or widths; all are named.
    """
    kinds = {one.delta.family for one in found}
    if len(kinds) > 1:
        each = ", ".join(
            f"{Path(name).name}: {families.named(one.delta.family).title}"
            for name, one in zip(names, found, strict=True)
        )
        raise InputError(
            f"they belong to different bases ({each})", expected="changes of one base", advice="leave the others out"
        )
    first = found[0].meaning.shapes
    if all(one.meaning.shapes is first for one in found):
        return first
    variants = [listing.modules(variant) for variant in families.named(kinds.pop()).variants]
    shapes = min(variants, key=lambda listed: sum(len(one.misfits(listed)) for one in found))
    for name, one in zip(names, found, strict=True):
        for path, why in one.misfits(shapes).items():
            raise InputError(f"{path} has another width than in the other files ({why})", where=name,
                             expected="changes of one base", advice="check which base each was trained on")  # fmt: skip
    return shapes


def require_output(out: str | Path, given: Iterable[str | Path], *, folder: bool = False) -> None:
    """Refuses an output that is an input, is a folder where a file is made, or lies where nothing can be written.

    Args:
        out: what will be written, once the work is done.
        given: the inputs.
        folder: what is written may be a folder.

    Raises:
        UsageError: `out` is an input or a folder.
        DeltawError: nothing can be written there.
    """
    out = Path(out)
    for path in map(Path, given):
        if path.resolve() == out.resolve() or (out.exists() and path.exists() and out.samefile(path)):
            raise UsageError("the output is an input", where=out, expected="another name", advice="choose another -o")
    if out.is_dir() and not folder:
        raise UsageError(
            "the output is a folder", where=out, expected="a file's name", advice=f"-o {out / 'NAME.safetensors'}"
        )
    atomic.require_writable(out)


def needs_base(error: ValueError, where: str | Path | None = None) -> InputError:
    """What to say where a change depends on W and no base was named."""
    return InputError(str(error), where=where, expected="the base it was trained on", advice="name it with --base")


def seeded(seed: int) -> torch.Generator:
    """The only source of randomness of a verb."""
    import torch

    return torch.Generator().manual_seed(seed)
