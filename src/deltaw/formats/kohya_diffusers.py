"""kohya's keys with diffusers' block names for every family (OneTrainer's legacy files, diffusers' export).

Read by `kohya`, which knows both spellings; this one writes the second.
"""

from __future__ import annotations

from collections.abc import Mapping

from deltaw.families import Family
from deltaw.families.listing import Shapes
from deltaw.formats import keys, kohya

NAME = "kohya-diffusers"
ALGORITHMS = kohya.ALGORITHMS
ALPHA_IN_FILE = True
key = kohya.key
describe = kohya.describe


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
