"""Key names: how they split, and which module of a base a name means.

Kohya's underscores cannot be undone by a pattern, so nothing here tries: every name that a dialect can
give to a module of the base is made from the base's own listing, and the dictionary of them is the inverse.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from deltaw import adapters
from deltaw.families import Family
from deltaw.families.listing import Shapes

KOHYA_SUFFIXES = {
    **{suffix: f"{own.NAME}.{tensor}" for own in adapters.ALL for suffix, tensor in own.SUFFIXES.items()},
    "bm.weight": "glora.bm",  # a part of GLoRA that is refused by name
    "alpha": ".alpha", "dora_scale": ".magnitude", "diff_b": ".bias", "b_norm": ".bias",
}  # fmt: skip
"""kohya's and LyCORIS' suffix to `algorithm.tensor`; a tensor without algorithm goes with any."""

COUNTED = re.compile(r"(unet|text_encoder)(:\d+:rank)?")
"""Header entries of files whose keys count modules (cloneofsimo's): the classes, and a module's rank."""

LYCORIS = tuple(own.NAME for own in adapters.ALL if own.SUFFIXES)
"""The algorithms that LyCORIS' suffixes can name."""

_KOHYA_SUFFIX = {tensor: suffix for suffix, tensor in KOHYA_SUFFIXES.items()}


def kohya_suffix(tensor: str, ndim: int) -> str:
    """The suffix of a canonical `algorithm.tensor` of a module whose weight has `ndim` dimensions.

    LyCORIS calls the change of a norm `w_norm`/`b_norm` and of any other module `diff`/`diff_b`.

    Raises:
        KeyError: it has none.
    """
    name = tensor.partition(".")[2]
    if name in ("diff", "bias"):
        return {"diff": ("diff", "w_norm"), "bias": ("diff_b", "b_norm")}[name][ndim == 1]
    return _KOHYA_SUFFIX[tensor] if tensor in _KOHYA_SUFFIX else _KOHYA_SUFFIX[f".{name}"]


PEFT_SUFFIXES = {
    "lora_A.weight": "lora.down", "lora_B.weight": "lora.up",
    "lora_A.default.weight": "lora.down", "lora_B.default.weight": "lora.up",
    "lora.down.weight": "lora.down", "lora.up.weight": "lora.up",
    "lora_linear_layer.down.weight": "lora.down", "lora_linear_layer.up.weight": "lora.up",
    "lora_magnitude_vector": ".magnitude", "lora_magnitude_vector.weight": ".magnitude",
    "lora_magnitude_vector.default.weight": ".magnitude", "magnitude": ".magnitude", "alpha": ".alpha",
}  # fmt: skip
"""The suffixes of PEFT and of diffusers' generations."""


@dataclass(frozen=True)
class Place:
    """What a name in a file means in a base.

    Args:
        paths: the canonical modules whose weights' rows the named weight stacks; mostly one.
        swapped: the two halves of its rows are in the other order than the canonical module's.
    """

    paths: tuple[str, ...]
    swapped: bool = False

    def shape(self, shapes: Shapes) -> tuple[int, ...]:
        """The shape of the named weight in a base of these shapes."""
        first = shapes[self.paths[0]]
        return (sum(shapes[path][0] for path in self.paths), *first[1:])


Places = Mapping[str, Place]


def split_flat(key: str, suffixes: Mapping[str, str]) -> tuple[str, str] | None:
    """A key with a flattened stem as stem and `algorithm.tensor`; None if the suffix is none of `suffixes`."""
    stem, _, suffix = key.partition(".")
    return (stem, suffixes[suffix]) if suffix in suffixes else None


def split_dotted(key: str, suffixes: Mapping[str, str]) -> tuple[str, str] | None:
    """A key with a dotted stem as stem and `algorithm.tensor`; the longest suffix counts."""
    at = -1
    ends: list[int] = []
    while (at := key.find(".", at + 1)) >= 0:
        ends.append(at)
    for end in ends[-3:]:
        if key[end + 1 :] in suffixes:
            return key[:end], suffixes[key[end + 1 :]]
    return None


def diffusers_places(family: Family, shapes: Shapes) -> dict[str, list[tuple[str, Place]]]:
    """Component to its modules' diffusers paths (without the component) and what they mean."""
    found: dict[str, list[tuple[str, Place]]] = {component.name: [] for component in family.components}
    for path in shapes:
        component, _, rest = path.partition(".")
        if component in found:
            found[component].append((rest, Place((path,))))
    return found


def original_places(family: Family, shapes: Shapes) -> dict[str, list[tuple[str, Place]]]:
    """As `diffusers_places`, with the denoiser's modules under their original names, fused ones as one."""
    found = diffusers_places(family, shapes)
    denoiser = family.denoiser
    found[denoiser] = [
        (entry.name, Place(tuple(f"{denoiser}.{part}" for part in entry.parts), entry.swapped))
        for entry in family.original(rest for rest, _ in found[denoiser])
    ]
    return found


def named_places(
    places: Mapping[str, list[tuple[str, Place]]],
    prefixes: Mapping[str, Iterable[str]],
    joined: Callable[[str, str], str],
) -> dict[str, Place]:
    """Every name in a file, made by `joined(prefix, path)`, with its place.

    Raises:
        ValueError: two modules of a base would have one name; the dialect cannot hold that base.
    """
    named: dict[str, Place] = {}
    for component, entries in places.items():
        for prefix in prefixes[component]:
            for path, place in entries:
                name = joined(prefix, path)
                if named.setdefault(name, place) != place:
                    raise ValueError(f"{name} means {named[name].paths} and {place.paths}")
    return named


def flat(prefix: str, path: str) -> str:
    """kohya's name: the prefix and the path with every dot an underscore."""
    return f"{prefix}_{path.replace('.', '_')}"


def dotted(prefix: str, path: str) -> str:
    """The prefix and the path as they are."""
    return f"{prefix}.{path}"
