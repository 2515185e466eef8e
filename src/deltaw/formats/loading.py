"""From a file to a `Delta`: reads the tensors that `reading` gave a meaning to."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deltaw import adapters
from deltaw.adapters.scaling import is_finite
from deltaw.delta import Delta, Update
from deltaw.errors import InputError
from deltaw.formats import alphas, embedding, fused, keys, peft_kinds, pickled
from deltaw.formats.embedding import Claim
from deltaw.formats.match import Match
from deltaw.formats.reading import FAMILY, Entry, Reading
from deltaw.formats.source import Source
from deltaw.tensorfile import Tensors

if TYPE_CHECKING:
    import torch

_OWN_METADATA = (alphas.HEADER, alphas.DTYPES, "format", "deltaw.component", pickled.TOKEN, FAMILY, fused.HEADER)


def build(source: Source, reading: Reading, *, drop_broken: bool) -> tuple[Delta, Match]:
    """The change and what became of each key.

    Raises:
        InputError: a tensor holds NaN or infinity (and `drop_broken` is not set), or an alpha no number.
    """
    updates: dict[str, Update] = {}
    broken: dict[str, str] = {}
    apart: dict[str, str] = {}
    notes: list[str] = []
    with opened(source) as get:
        modules = Modules(source, reading, get)
        for entry in reading.entries:
            tensors = modules.tensors(entry)
            if why := not_finite(tensors):
                broken[entry.stem] = why
                continue
            notes += _odd(entry.stem, tensors)
            try:
                updates.update(modules.updates(entry, tensors))
            except ValueError as error:
                apart[entry.stem] = str(error)
        vectors = {claim: get(claim.key) for claim in reading.vectors}
    broken |= {claim.key: why for claim, vector in vectors.items() if (why := not_finite({"vector": vector}))}
    if broken and not (drop_broken and updates):
        raise refused_broken(source.where, broken)
    if apart and not updates:
        raise refused_fused(source.where, apart)
    match = replace(reading.match, ignored={**reading.match.ignored, **apart, **broken}, notes=reading.match.notes + tuple(notes),
                    matched=tuple(updates) or reading.match.matched)  # fmt: skip
    kept = {claim: vector for claim, vector in vectors.items() if claim.key not in broken}
    return whole(source, reading, updates, kept), match


def whole(
    source: Source, reading: Reading, updates: Mapping[str, Update], vectors: Mapping[Claim, torch.Tensor]
) -> Delta:
    """The change of these updates and vectors, with what its file says of itself."""
    metadata = {
        key: value for key, value in source.header.metadata.items() if not is_dialects(key) and value != pickled.EMBED
    }
    return Delta(reading.family.name, updates, trigger_words(metadata), metadata, _embeddings(vectors, reading))


@dataclass
class Modules:
    """Reads the named modules of an open file.

    Args:
        source: where its tensors lie.
        reading: what they mean.
        get: reads a key.
    """

    source: Source
    reading: Reading
    get: Callable[[str], torch.Tensor]

    def __post_init__(self) -> None:
        self._dtypes = _alpha_dtypes(self.source)
        self._joined = fused.noted(self.source.header.metadata)

    def tensors(self, entry: Entry) -> dict[str, torch.Tensor]:
        """An entry's tensors under their canonical names and in canonical shape."""
        tensors = _canonical(entry, {name: self.get(key) for name, key in entry.tensors.items()}, self.reading)
        if (alpha := _alpha_tensor(self.source, entry, tensors, self._dtypes)) is not None:
            tensors.setdefault("alpha", alpha)
        return _as_configured(self.source, entry, tensors, self.reading)

    def updates(self, entry: Entry, tensors: dict[str, torch.Tensor]) -> dict[str, Update]:
        """Canonical path to update; several for a fused weight.

        Raises:
            ValueError: the modules of a fused weight cannot be told apart.
        """
        return _updates(entry, tensors, self.reading, self._joined.get(entry.stem))


def _embeddings(vectors: Mapping[Claim, torch.Tensor], reading: Reading) -> dict[str, dict[str, torch.Tensor]]:
    found: dict[str, dict[str, torch.Tensor]] = {}
    for claim, vector in vectors.items():
        component = embedding.component_of(claim.part, reading.family)
        found.setdefault(claim.token, {})[component] = vector.reshape(-1, vector.shape[-1])
    return found


@contextlib.contextmanager
def opened(source: Source) -> Iterator[Callable[[str], torch.Tensor]]:
    """Opens its files; gives what reads a key."""
    with contextlib.ExitStack() as stack:
        files = {path: stack.enter_context(path.open("rb", buffering=0)) for path in source.headers}
        handles = {path: Tensors(path, source.headers[path], file) for path, file in files.items()}  # type: ignore[arg-type]

        def get(key: str) -> torch.Tensor:
            path, name = source.files[key]
            tensor, shape = handles[path].get_tensor(name), source.header.tensors[key].shape
            if key in source.strides:
                return tensor.as_strided(shape, source.strides[key]).contiguous()
            return tensor.reshape(shape)

        yield get


def _canonical(entry: Entry, tensors: dict[str, torch.Tensor], reading: Reading) -> dict[str, torch.Tensor]:
    """The tensors in canonical shape: alpha 0-d; DoRA norms with as many dimensions as the weight."""
    if "alpha" in tensors and tensors["alpha"].numel() == 1:
        tensors["alpha"] = tensors["alpha"].reshape(())
    if "magnitude" in tensors and entry.place is not None:
        n_dims = len(entry.place.shape(reading.shapes))
        norms = tensors["magnitude"]
        if norms.ndim == 1 or (norms.shape[0] == 1 and norms.ndim == 4 and entry.dialect in ("peft", "diffusers")):
            tensors["magnitude"] = norms.reshape(-1, *(1,) * (n_dims - 1))
    return tensors


def _alpha_tensor(
    source: Source, entry: Entry, tensors: Mapping[str, torch.Tensor], dtypes: Mapping[str, str]
) -> torch.Tensor | None:
    import torch

    rank = adapters.rank(entry.algorithm, {name: tuple(tensor.shape) for name, tensor in tensors.items()})
    if rank is None or entry.place is None:
        return None
    alpha = configured_alpha(source, entry, rank)
    dtype = dtypes.get(entry.place.paths[0], "float32")
    return torch.tensor(alpha, dtype=getattr(torch, dtype)) if alpha is not None and dtype else None


def configured_alpha(source: Source, entry: Entry, rank: int) -> float | None:
    """The alpha that a configuration beside the tensors gives to an entry, if one does.

    Raises:
        InputError: the configuration makes no sense.
    """
    config, path = _configuration(source, entry)
    try:
        alpha = alphas.configured(config, path, rank)
        return alpha if alpha is not None else alphas.configured(config, path.removeprefix("text_model."), rank)
    except ValueError as error:
        raise InputError(str(error), where=source.where, advice="write the alphas out by name") from error


def _configuration(source: Source, entry: Entry) -> tuple[Mapping[str, Any], str]:
    """The configuration that an entry belongs to (empty where there is none), and its path in that network."""
    for prefix, config in source.configs.items():
        if entry.stem.startswith(prefix):
            return config, entry.stem.removeprefix(prefix)
    return {}, entry.stem


def _as_configured(
    source: Source, entry: Entry, tensors: dict[str, torch.Tensor], reading: Reading
) -> dict[str, torch.Tensor]:
    if entry.dialect != "peft" or entry.place is None:
        return tensors
    config, path = _configuration(source, entry)
    try:
        return peft_kinds.canonical(entry.algorithm, tensors, config, path, entry.place.shape(reading.shapes))
    except ValueError as error:
        raise InputError(str(error), where=source.where, advice="mend the adapter's configuration") from error


def _alpha_dtypes(source: Source) -> dict[str, str]:
    import torch

    try:
        found = json.loads(source.header.metadata.get(alphas.DTYPES, "{}"))
    except ValueError:
        return {}
    known = found if isinstance(found, dict) else {}
    return {str(p): d for p, d in known.items() if d == "" or isinstance(getattr(torch, str(d), None), torch.dtype)}


def not_finite(tensors: Mapping[str, torch.Tensor]) -> str:
    """What keeps an entry's tensors from being used, or ""."""
    for name, tensor in tensors.items():
        if not is_finite(tensor):
            n_bad = int((~tensor.float().isfinite()).sum())
            return f"{name} holds {n_bad} of {tensor.numel()} numbers that are NaN or infinite"
    if "alpha" in tensors and tensors["alpha"].numel() != 1:
        return f"alpha has {tensors['alpha'].numel()} numbers instead of one"
    return ""


def _odd(stem: str, tensors: Mapping[str, torch.Tensor]) -> list[str]:
    found: list[str] = []
    if "alpha" in tensors and float(tensors["alpha"]) == 0:
        found.append(f"{stem}: alpha is 0, so the module has no effect")
    if "down" in tensors and tensors["down"].shape[0] == 0:
        found.append(f"{stem}: rank 0, so the module has no effect")
    return found


def _updates(
    entry: Entry, tensors: dict[str, torch.Tensor], reading: Reading, how: fused.Joined | None
) -> dict[str, Update]:
    place = entry.place
    assert place is not None  # reading keeps placed entries only
    n_rows = [reading.shapes[path][0] for path in place.paths]
    if place.swapped:
        tensors = fused.swap_halves(entry.algorithm, tensors, sum(n_rows))
    if len(place.paths) == 1:
        return {place.paths[0]: Update(entry.algorithm, tensors)}
    parts = fused.split(entry.algorithm, tensors, n_rows, how)
    return {
        path: Update(entry.algorithm, part) for path, part in zip(place.paths, parts, strict=True) if part is not None
    }


def is_dialects(key: str) -> bool:
    """Whether a header entry belongs to the file's dialect and not to the change in it."""
    return key in _OWN_METADATA or keys.COUNTED.fullmatch(key) is not None


def trigger_words(metadata: Mapping[str, str]) -> tuple[str, ...]:
    """The words that call the change up, as modelspec keeps them."""
    phrase = metadata.get("modelspec.trigger_phrase", "")
    return tuple(word.strip() for word in phrase.split(",") if word.strip())


def refused_fused(where: Path, apart: Mapping[str, str]) -> InputError:
    stem, why = next(iter(apart.items()))
    return InputError(
        f"none of its changes of stacked weights can be told apart into modules ({stem}: {why})", where=where,
        expected="changes whose rows are the modules' own",
        advice="use it with the program it was made for; a plain LoRA has no such limit",
    )  # fmt: skip


def refused_broken(where: Path, broken: Mapping[str, str]) -> InputError:
    shown = "; ".join(f"{stem}: {why}" for stem, why in list(broken.items())[:3])
    return InputError(
        f"{len(broken)} modules hold numbers that are not finite ({shown})", where=where, expected="finite tensors",
        advice="train it again with a lower learning rate, or load it without these modules (drop_broken)",
    )  # fmt: skip
