"""From a file's header to what its keys mean, before any tensor is read and without a tensor library.

Each key is split by the first dialect that knows its form; the family and variant are those whose
dictionary of names explains most keys, by shape first, by name second.
"""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING

from deltaw import adapters, families
from deltaw.errors import InputError
from deltaw.families import Family, listing
from deltaw.families.listing import Shapes
from deltaw.formats import embedding, fused, pickled, strangers
from deltaw.formats.embedding import Claim
from deltaw.formats.keys import Place, Places
from deltaw.formats.match import Match
from deltaw.tensorfile import Header

if TYPE_CHECKING:
    from deltaw.formats import Dialect

FAMILY = "deltaw.family"
"""Header key: the family that a change was made for, where some modules of two families look alike."""

_TELLING = ("unet", "text_encoder", "deltaw.component")
"""The header entries that some dialect's names depend on (cloneofsimo's classes, PEFT's component)."""

FLOATS = ("F64", "F32", "F16", "BF16", "F8_E4M3", "F8_E5M2")


@dataclass
class Entry:
    """One named module of a file: its dialect, `algorithm.tensor` to file key, and its place in the base."""

    stem: str
    dialect: str
    keys: dict[str, str]
    place: Place | None = None

    @functools.cached_property
    def algorithm(self) -> str:
        """The one algorithm that its tensors belong to; "full" for a bias alone; "a+b" where they disagree."""
        found = dict.fromkeys(tensor.partition(".")[0] for tensor in self.keys)
        return "+".join(name for name in found if name) or "full"

    @functools.cached_property
    def tensors(self) -> dict[str, str]:
        """Canonical tensor name to file key."""
        return {tensor.partition(".")[2]: key for tensor, key in self.keys.items()}


@dataclass(frozen=True)
class Reading:
    """What a file holds: its family, the network it fits, the usable entries and tokens' vectors, and the rest's fate."""

    family: Family
    shapes: Shapes
    entries: tuple[Entry, ...]
    match: Match
    vectors: tuple[Claim, ...] = ()


def resolve(header: Header, dialects: Sequence[Dialect], where: Path, shapes: Shapes | None = None) -> Reading:
    """Gives every key of a header its meaning.

    Args:
        header: of the file.
        dialects: in the order in which they are asked.
        where: the file, for messages.
        shapes: canonical path to weight shape of the base that is meant; without it, the best of all known.

    Raises:
        InputError: no key names a module of the base.
    """
    entries, unsplit = _split(header, dialects)
    vectors = embedding.claims(unsplit, header, where.stem)
    unsplit = [key for key in unsplit if key not in {claim.key for claim in vectors}]
    if vectors and not entries and not unsplit:
        return _only_vectors(where, header, vectors)
    in_play = [dialect for dialect in dialects if any(entry.dialect == dialect.NAME for entry in entries)]
    choices = []
    for family, variant, listed in _candidates(shapes, header.metadata):
        places = {d.NAME: _places(d, family, listed, header.metadata) for d in in_play}
        score = (*_score(entries, places, header, listed), _is_named(family, header.metadata))
        choices.append((score, family, variant, listed, places))
        if score == (len(entries), len(entries), True):  # the most there is
            break
    (by_shape, by_name, _), family, variant, listed, places = max(choices, key=lambda choice: choice[0])
    for entry in entries:
        entry.place = places[entry.dialect].get(entry.stem)
    usable, match = _judge(entries, unsplit, header, family, variant, listed)
    if not usable:
        raise _nothing_matches(where, header, entries, match, by_name if not by_shape else 0)
    fitting, unfit = _fitting(vectors, header, family, listed)
    match = replace(match, ignored={**match.ignored, **unfit}, notes=match.notes + pickled.beside(where))
    return Reading(family, listed, tuple(usable), match, fitting)


def _only_vectors(where: Path, header: Header, vectors: list[Claim]) -> Reading:
    family = embedding.family_of(vectors, header)
    if family is None:
        widths = ", ".join(f"{claim.part or claim.key}: {header.tensors[claim.key].shape[-1]}" for claim in vectors)
        raise InputError(f"token vectors of these widths fit no known text encoder ({widths})", where=where,
                         expected="768 for SD 1, 1024 for SD 2, 768 and 1280 for SDXL", advice="check its base")  # fmt: skip
    match = Match(family.name, family.variants[0], {"embedding": len(vectors)}, matched=tuple(c.token for c in vectors))
    return Reading(family, listing.modules(family.variants[0]), (), match, tuple(vectors))


def _fitting(
    vectors: list[Claim], header: Header, family: Family, shapes: Shapes
) -> tuple[tuple[Claim, ...], dict[str, str]]:
    """The vectors that the family's encoders take, and why not the others."""
    fitting: list[Claim] = []
    unfit: dict[str, str] = {}
    for claim in vectors:
        width, wanted = (
            header.tensors[claim.key].shape[-1],
            embedding.width_of(embedding.component_of(claim.part, family), shapes),
        )
        if width == wanted:
            fitting.append(claim)
        else:
            unfit[claim.key] = f"a token's vectors of width {width}, the text encoder's are {wanted}"
    return tuple(fitting), unfit


def _places(dialect: Dialect, family: Family, shapes: Shapes, metadata: Mapping[str, str]) -> Places:
    """The dialect's names of a base; those of the known bases are made once."""
    variant = next((name for name in family.variants if listing.modules(name) is shapes), "")
    told = tuple((key, metadata[key]) for key in _TELLING if key in metadata)
    if not variant or sum(len(value) for _, value in told) > 1000:
        return dialect.places(family, shapes, metadata)
    return _known_places(dialect, family, variant, told)


@functools.lru_cache(maxsize=128)
def _known_places(dialect: Dialect, family: Family, variant: str, told: tuple[tuple[str, str], ...]) -> Places:
    return dialect.places(family, listing.modules(variant), dict(told))


def _split(header: Header, dialects: Sequence[Dialect]) -> tuple[list[Entry], list[str]]:
    entries: dict[tuple[str, str], Entry] = {}
    unsplit: list[str] = []
    for key in header.tensors:
        for dialect in dialects:
            if (parts := dialect.split(key)) is not None:
                stem, tensor = parts
                entries.setdefault((dialect.NAME, stem), Entry(stem, dialect.NAME, {})).keys[tensor] = key
                break
        else:
            unsplit.append(key)
    return list(entries.values()), unsplit


def _candidates(shapes: Shapes | None, metadata: Mapping[str, str]) -> Iterable[tuple[Family, str, Shapes]]:
    """Every known base, those first that the file says it is for: where one fits, no other is looked at."""
    if shapes is not None:
        yield listing.family_of(shapes), "", shapes
        return
    for family in sorted(families.ALL, key=lambda family: not _is_named(family, metadata)):
        for variant in family.variants:
            yield family, variant, listing.modules(variant)


def _score(entries: list[Entry], places: Mapping[str, Places], header: Header, shapes: Shapes) -> tuple[int, int]:
    """How many entries fit by shape and how many by name."""
    n_shape = n_name = 0
    for entry in entries:
        if (place := places[entry.dialect].get(entry.stem)) is not None:
            n_name += 1
            n_shape += not problem(entry, header, place.shape(shapes))
    return n_shape, n_name


def _is_named(family: Family, metadata: Mapping[str, str]) -> bool:
    """Whether the file says that it is of this family; that only decides where its shapes leave it open."""
    if FAMILY in metadata:
        return metadata[FAMILY] == family.name
    architecture = metadata.get("modelspec.architecture", "").split("-")[
        :3
    ]  # `stable-diffusion-v2` of `…-v2-768-v/lora`
    version = metadata.get("ss_base_model_version", "")
    return architecture == family.architecture.split("-")[:3] or version.startswith(
        family.kohya_version.removesuffix("_v")
    )


def problem(entry: Entry, header: Header, shape: tuple[int, ...]) -> str:
    """Why an entry cannot change a weight of `shape`, or "" if it can."""
    tensors = entry.tensors
    if entry.algorithm not in {algorithm.NAME for algorithm in adapters.ALL}:
        return ""  # judged by name later: it is not a matter of shape
    algorithm = adapters.named(entry.algorithm)
    if any(name not in tensors for name in algorithm.TENSORS):
        return ""
    shapes = {name: header.tensors[key].shape for name, key in tensors.items()}
    try:
        return adapters.fits(algorithm.NAME, shapes, shape)
    except IndexError:  # fewer dimensions than the algorithm's tensors have
        return f"{algorithm.NAME} tensors of shapes {[list(s) for s in shapes.values()]}"


def _judge(
    entries: list[Entry], unsplit: list[str], header: Header, family: Family, variant: str, shapes: Shapes
) -> tuple[list[Entry], Match]:
    usable: dict[tuple[str, ...], Entry] = {}
    unmatched = {key: _why_unknown(key) for key in unsplit}
    mismatched: dict[str, str] = {}
    ignored: dict[str, str] = {}
    for entry in entries:
        if entry.place is None:
            unmatched.update(dict.fromkeys(entry.keys.values(), f"{family.title} has no such module"))
        elif reason := _unusable(entry, header):
            ignored.update(dict.fromkeys(entry.keys.values(), reason))
        elif why := problem(entry, header, entry.place.shape(shapes)):
            mismatched[entry.stem] = why
        elif reason := _inseparable(entry, header, shapes):
            ignored.update(dict.fromkeys(entry.keys.values(), reason))
        elif entry.place.paths in usable:
            ignored.update(dict.fromkeys(entry.keys.values(), f"the same module as {usable[entry.place.paths].stem}"))
        else:
            usable[entry.place.paths] = entry
            ignored.update(_scaled_bias(entry, header, family))
    match = Match(
        family=family.name, variant=variant, dialects=dict(Counter(e.dialect for e in entries for _ in e.keys)),
        matched=tuple(path for paths in usable for path in paths),
        unmatched=unmatched, mismatched=mismatched, ignored=ignored,
        notes=(f"{header.extra_bytes} bytes after the last tensor are no part of it; `deltaw convert` writes it without them",) if header.extra_bytes else (),
    )  # fmt: skip
    return list(usable.values()), match


_SCALES = ("scale_weight", "weight_scale", "scale", "weight_scale_inv", "absmax", "quant_state")


def _scale_of(key: str, dtype: str, header: Header) -> str | None:
    """The key that holds the scale of a tensor's numbers, as programs that quantise write one; None where it has none."""
    if not dtype.startswith(("F8", "I", "U")):
        return None
    stem = key.removesuffix("weight").removesuffix(".")
    names = (f"{joint}{scale}" for joint in (f"{stem}.", f"{key}.", f"{key}_") for scale in _SCALES)
    return next((name for name in (*names, "scaled_fp8") if name in header.tensors), None)


def _why_unknown(key: str) -> str:
    if key.startswith("base_model.") and key.endswith((".weight", ".bias")):
        return "the base's own numbers as trained (PEFT's modules_to_save or bias), whose change needs the base"
    if "lora_embedding_" in key:
        return "PEFT's change of an embedding is not supported"
    return "no dialect writes such a key"


def _scaled_bias(entry: Entry, header: Header, family: Family) -> dict[str, str]:
    """PEFT's (IA)³ scales a module's bias with its rows, without a key for it; a U-Net's q, k and v have none."""
    if entry.algorithm != "scale" or entry.place is None or header.tensors[entry.tensors["l"]].shape[0] == 1:
        return {}
    path = entry.place.paths[0]
    if path.startswith("unet.") and path.endswith((".to_q", ".to_k", ".to_v")):
        return {}
    return {
        f"{entry.stem}.bias": "PEFT's (IA)³ scales the bias as well, if there is one; that needs the base's and is left out"
    }


def _unusable(entry: Entry, header: Header) -> str:
    """Why an entry is understood and still cannot be used, or ""."""
    if entry.algorithm not in {algorithm.NAME for algorithm in adapters.ALL}:
        return f"{entry.algorithm} is not supported"
    tensors = entry.tensors
    if set(tensors) <= {"alpha", "magnitude"}:
        return f"{' and '.join(tensors)} without the change that it goes with"
    if "alpha" in tensors and (n := prod(header.tensors[tensors["alpha"]].shape)) != 1:
        return f"alpha has {n} numbers instead of one"
    algorithm = adapters.named(entry.algorithm)
    if missing := [name for name in algorithm.TENSORS if name not in tensors]:
        return f"{' and '.join(missing)} missing beside {' and '.join(tensors)}"
    if unknown := [name for name in tensors if name not in (*algorithm.TENSORS, *algorithm.OPTIONAL, *adapters.COMMON)]:
        return f"{algorithm.NAME} has no {' and '.join(unknown)}"
    for name, key in tensors.items():
        dtype = header.tensors[key].dtype
        if (scale := _scale_of(key, dtype, header)) is not None:
            return f"{name} is {dtype} and to be multiplied by {scale}; quantised LoRAs are not read"
        if dtype not in FLOATS and name not in ("alpha", "on_input"):
            return f"{name} is {dtype}, which needs a scale that the file does not carry"
    return ""


def _inseparable(entry: Entry, header: Header, shapes: Shapes) -> str:
    """Why an update of stacked modules cannot be told apart into theirs, or ""."""
    if entry.place is None or len(entry.place.paths) == 1:
        return ""
    tensors = {name: header.tensors[key].shape for name, key in entry.tensors.items()}
    return fused.cannot_split(entry.algorithm, tensors, [shapes[path][0] for path in entry.place.paths])


def _nothing_matches(where: Path, header: Header, entries: list[Entry], match: Match, n_named: int) -> InputError:
    names = list(header.tensors)
    if not names:
        return InputError("the file holds no tensors", where=where, expected="a LoRA", advice="check what was saved")
    if n_named and match.mismatched:
        stem, problem = next(iter(match.mismatched.items()))
        return InputError(
            f"its modules are called as {families.named(match.family).title}'s, but none has its shape ({stem}: {problem})",
            where=where, expected="the base it was trained on", advice="name that base with --base",
        )  # fmt: skip
    if match.ignored:
        key, reason = next(iter(match.ignored.items()))
        return InputError(f"nothing in it can be used ({key}: {reason})", where=where, expected="a complete LoRA",
                          advice="download or export it again")  # fmt: skip
    if (kind := strangers.kind(names)) is not None:
        return InputError(
            f"this is {kind}, not a LoRA for an image base",
            where=where,
            expected="a LoRA",
            advice="use it as what it is",
        )
    return InputError(
        f"no key names a module of a known base ({len(names)} keys, the first is {names[0][:120]!r})", where=where, expected="a LoRA for " + ", ".join(family.title for family in families.ALL),
        advice="check which base and tool it was made with; `deltaw inspect` lists its keys",
    )  # fmt: skip
