"""A file as a `Delta` whose modules are read when they are asked for, so that many large files take little memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from deltaw.delta import Delta, Update
from deltaw.families.listing import Shapes
from deltaw.formats import loading, reading
from deltaw.formats.match import Match
from deltaw.formats.reading import Entry, Reading
from deltaw.formats.source import Source

if TYPE_CHECKING:
    import torch


class Streamed(Mapping[str, Update]):
    """The updates of an open file by canonical path; the last one that was read is kept.

    Fused weights are looked at once beforehand, since their numbers tell which of their modules change.

    Raises:
        InputError: on reading, a module holds NaN or infinity; all such modules are named.
    """

    def __init__(self, source: Source, meaning: Reading, get: Callable[[str], torch.Tensor]):
        self._modules = loading.Modules(source, meaning, get)
        self._last: tuple[Entry, dict[str, Update]] | None = None
        self._entries: dict[str, Entry] = {}
        self.apart: dict[str, str] = {}
        for entry in meaning.entries:
            assert entry.place is not None  # reading keeps placed entries only
            try:
                paths = self._read(entry) if len(entry.place.paths) > 1 else entry.place.paths
                self._entries |= dict.fromkeys(paths, entry)
            except ValueError as error:
                self.apart[entry.stem] = str(error)
        if self.apart and not self._entries:
            raise loading.refused_fused(source.where, self.apart)

    def __getitem__(self, path: str) -> Update:
        entry = self._entries[path]
        if self._last is None or self._last[0] is not entry:
            self._last = entry, self._read(entry)
        return self._last[1][path]

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def __len__(self) -> int:
        return len(self._entries)

    def _read(self, entry: Entry) -> dict[str, Update]:
        tensors = self._modules.tensors(entry)
        if loading.not_finite(tensors):
            entries = self._modules.reading.entries
            found = {one.stem: loading.not_finite(self._modules.tensors(one)) for one in entries}
            raise loading.refused_broken(self._modules.source.where, {stem: why for stem, why in found.items() if why})
        return self._modules.updates(entry, tensors)


@dataclass(frozen=True)
class Opened:
    """An open file.

    Args:
        delta: the change, its updates read on demand.
        match: what became of each key.
        source: where its tensors lie.
        meaning: what its keys mean.
    """

    delta: Delta
    match: Match
    source: Source
    meaning: Reading

    def misfits(self, shapes: Shapes) -> dict[str, str]:
        """Canonical path to why its change fits no base of these shapes; from the header alone."""
        found: dict[str, str] = {}
        for entry in self.meaning.entries:
            assert entry.place is not None
            if missing := [path for path in entry.place.paths if path not in shapes]:
                found[missing[0]] = "no such module"
            elif why := reading.problem(entry, self.source.header, entry.place.shape(shapes)):
                found[entry.place.paths[0]] = why
        return found

    def dtypes(self) -> set[str]:
        """safetensors' names of the types of its factors, alphas left out."""
        keys = [key for entry in self.meaning.entries for name, key in entry.tensors.items() if name != "alpha"]
        return {self.source.header.tensors[key].dtype for key in keys}


def opened(source: Source, meaning: Reading, get: Callable[[str], torch.Tensor]) -> Opened:
    """The change in a file whose keys `get` reads.

    Raises:
        InputError: a token's vectors or a fused weight hold NaN or infinity, or nothing in it can be told apart.
    """
    vectors = {claim: get(claim.key) for claim in meaning.vectors}
    broken = {claim.key: why for claim, vector in vectors.items() if (why := loading.not_finite({"vector": vector}))}
    if broken:
        raise loading.refused_broken(source.where, broken)
    updates = Streamed(source, meaning, get)
    match = replace(meaning.match, ignored={**meaning.match.ignored, **updates.apart},
                    matched=tuple(updates) or meaning.match.matched)  # fmt: skip
    return Opened(loading.whole(source, meaning, updates, vectors), match, source, meaning)
