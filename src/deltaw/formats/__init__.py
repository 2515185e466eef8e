"""File dialects: one a file. Every file becomes a `Delta` on entry and leaves it on exit.

To add one: write `formats/NAME.py` (see `Dialect`) and put it in `ALL`. The contract test then checks it.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Protocol

from deltaw.delta import Delta
from deltaw.errors import InputError, UsageError
from deltaw.families import Family
from deltaw.families.listing import Shapes, shapes_of
from deltaw.formats import (
    cloneofsimo,
    comfy,
    diffusers,
    diffusers_middle,
    diffusers_old,
    kohya,
    kohya_diffusers,
    loading,
    peft,
    reading,
    saving,
    streaming,
    xlabs,
)
from deltaw.formats.keys import Places
from deltaw.formats.match import Match
from deltaw.formats.reading import Reading
from deltaw.formats.source import Source, locate
from deltaw.formats.streaming import Opened

__all__ = ["ALL", "Dialect", "Match", "Opened", "lazy", "load", "named", "save", "shapes_of", "understand", "units"]


class Dialect(Protocol):
    """What a module in `formats/` offers."""

    @property
    def NAME(self) -> str:
        """What `--dialect` calls it."""
        ...

    @property
    def ALGORITHMS(self) -> tuple[str, ...]:
        """The algorithms that it has keys for."""
        ...

    @property
    def ALPHA_IN_FILE(self) -> bool | None:
        """Alphas are tensors of the file (True), in a configuration (False), or cannot be said (None)."""
        ...

    @staticmethod
    def split(key: str) -> tuple[str, str] | None:
        """A key of this dialect as stem and `algorithm.tensor`; None for any other key."""
        ...

    @staticmethod
    def places(family: Family, shapes: Shapes, metadata: Mapping[str, str]) -> Places:
        """Every stem that is read for a base of these shapes, with what it means."""
        ...

    @staticmethod
    def names(family: Family, shapes: Shapes) -> Places:
        """Every stem that is written."""
        ...

    @staticmethod
    def key(stem: str, tensor: str, ndim: int) -> str:
        """The key of `algorithm.tensor` of a module whose weight has `ndim` dimensions."""
        ...

    @staticmethod
    def original(family: Family) -> bool:
        """Whether its names follow the original code, whose numbering depends on the base's depth."""
        ...

    @staticmethod
    def describe(delta: Delta, shapes: Shapes) -> dict[str, str]:
        """Header entries that the dialect needs beside the tensors, for a base of these shapes."""
        ...


ALL: tuple[Dialect, ...] = (
    cloneofsimo, kohya, kohya_diffusers, xlabs, diffusers_old, diffusers_middle, diffusers, peft, comfy,
)  # fmt: skip
"""Every dialect, in the order in which a key is shown to them."""


EMBEDDING = "embedding"
"""The name under which a file of one token's vectors alone is written; it has no modules, so it is no `Dialect`."""


def named(name: str) -> Dialect:
    """The dialect of that name.

    Raises:
        UsageError: no dialect is called so.
    """
    for dialect in ALL:
        if name == dialect.NAME:
            return dialect
    raise UsageError(
        f"no dialect is called {name!r}", expected=", ".join(d.NAME for d in ALL), advice="choose one of these"
    )


def units(dialect: str, family: Family, shapes: Shapes, paths: Iterable[str]) -> dict[tuple[str, ...], int]:
    """The modules of `paths` in groups that share one weight in the dialect, and so one rank; mostly of one.

    Every group comes with the rows of that weight, those of modules which are not in `paths` included.
    """
    stacked = [place.paths for place in named(dialect).names(family, shapes).values() if len(place.paths) > 1]
    group = {path: members for members in stacked for path in members}
    present = dict.fromkeys(paths)
    found = {group.get(path, (path,)): None for path in present}
    return {
        tuple(path for path in members if path in present): sum(shapes[path][0] for path in members)
        for members in found
    }


def understand(path: str | Path, *, shapes: Shapes | None = None) -> tuple[Source, Reading]:
    """What a file's keys mean, from its header alone; no tensor is read.

    Raises:
        InputError: it is no LoRA, or for no base that is known.
    """
    source = locate(path)
    return source, reading.resolve(source.header, ALL, source.where, shapes)


def load(
    path: str | Path, *, strict: bool = False, shapes: Shapes | None = None, drop_broken: bool = False
) -> tuple[Delta, Match]:
    """Reads a LoRA in any dialect.

    Args:
        path: a file, or a folder of PEFT's or diffusers'.
        strict: anything in the file that is not used is an error.
        shapes: canonical path to weight shape of the base it is meant for (`shapes_of`); without it, the
            best fitting of the bases that are known by themselves.
        drop_broken: leave out modules with NaN or infinite numbers instead of refusing the file.

    Returns:
        The change, and what became of each key. The caller warns of `match.losses()` where `match.partial`.

    Raises:
        InputError: nothing in it fits, a tensor is not finite, or `strict` and something is not used.
    """
    source, meaning = understand(path, shapes=shapes)
    delta, match = loading.build(source, meaning, drop_broken=drop_broken)
    _require_whole(match, strict, source.where)
    return delta, match


@contextlib.contextmanager
def lazy(path: str | Path, *, strict: bool = False, shapes: Shapes | None = None) -> Iterator[Opened]:
    """As `load`, but that a module's tensors are read when they are asked for; the file stays open meanwhile.

    Raises:
        InputError: as `load`; for a tensor that is not finite, when it is asked for.
    """
    source, meaning = understand(path, shapes=shapes)
    with loading.opened(source) as get:
        found = streaming.opened(source, meaning, get)
        _require_whole(found.match, strict, source.where)
        yield found


def _require_whole(match: Match, strict: bool, where: Path) -> None:
    if strict and match.partial:
        raise InputError(
            f"not everything in it is used ({match.counts()}; {'; '.join(match.losses(3))})", where=where,
            expected="every key used (--strict)", advice="check the base, or leave --strict out",
        )  # fmt: skip


def save(delta: Delta, path: str | Path, dialect: str = "kohya", *, shapes: Shapes | None = None) -> int:
    """Writes a change atomically; returns the size in bytes. Reading it back gives the same tensors, bit for bit.

    Args:
        delta: the change.
        path: the file, or the folder of PEFT's dialect.
        dialect: a name in `ALL`, or "embedding".
        shapes: of the base (`shapes_of`), where it is none of the known ones; original names depend on its depth.

    Raises:
        UsageError: no dialect is called so.
        InputError: the dialect cannot hold this change; every reason is named.
    """
    if dialect == EMBEDDING:
        return saving.write_vectors(delta, path)
    return saving.write(delta, named(dialect), path, shapes)
