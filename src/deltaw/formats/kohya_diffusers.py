"""kohya's keys with diffusers' block names for every family (OneTrainer's legacy files, diffusers' export).

Read by `kohya`, which knows both spellings; this one writes the second.
"""

from __future__ import annotations

from collections.abc import Mapping

from deltaw.delta import Delta
from deltaw.families import Family
from deltaw.families.listing import Shapes
from deltaw.formats import keys

NAME = "kohya-diffusers"
ALGORITHMS = keys.LYCORIS
ALPHA_IN_FILE = True


def split(key: str) -> None:
    """Nothing: reading both spellings is `kohya`'s."""


def places(family: Family, shapes: Shapes, metadata: Mapping[str, str]) -> keys.Places:
    """Nothing, as `split`."""
    return {}


def original(family: Family) -> bool:
    """Never: names are diffusers'."""
    return False


def names(family: Family, shapes: Shapes) -> keys.Places:
    """The names that are written, one a module."""
    prefixes = {c.name: ("lora_transformer" if c.name == "transformer" else c.kohya,) for c in family.components}
    return keys.named_places(keys.diffusers_places(family, shapes), prefixes, keys.flat)


def key(stem: str, tensor: str, ndim: int) -> str:
    """The key of a canonical `algorithm.tensor`; `ndim` is that of the module's weight (1: a norm)."""
    return f"{stem}.{keys.kohya_suffix(tensor, ndim)}"


def describe(delta: Delta, shapes: Shapes) -> dict[str, str]:
    """Nothing: the keys say all."""
    return {}
