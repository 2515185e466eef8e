"""diffusers of 2023, between attention processors and PEFT: `unet.….to_q.lora.down.weight`, no alpha.

Text encoders have `….q_proj.lora_linear_layer.down.weight`. Alpha always is the rank. Read by `diffusers`, which knows every
generation but the first; this one writes it.
"""

from __future__ import annotations

from collections.abc import Mapping

from deltaw.delta import Delta
from deltaw.families import Family
from deltaw.families.listing import Shapes
from deltaw.formats import keys

NAME = "diffusers-middle"
ALGORITHMS = ("lora",)
ALPHA_IN_FILE = None
_SUFFIX = {"lora.up": "up.weight", "lora.down": "down.weight"}


def split(key: str) -> None:
    """Nothing: reading it is `diffusers`'."""


def places(family: Family, shapes: Shapes, metadata: Mapping[str, str]) -> keys.Places:
    """Nothing, as `split`."""
    return {}


def names(family: Family, shapes: Shapes) -> keys.Places:
    """The names that are written: the canonical paths themselves."""
    prefixes = {c.name: (c.name,) for c in family.components}
    return keys.named_places(keys.diffusers_places(family, shapes), prefixes, keys.dotted)


def key(stem: str, tensor: str, ndim: int) -> str:
    """The key of a canonical `algorithm.tensor`.

    Raises:
        KeyError: the dialect has no key for it.
    """
    layer = "lora_linear_layer" if stem.startswith("text_encoder") else "lora"
    return f"{stem}.{layer}.{_SUFFIX[tensor]}"


def original(family: Family) -> bool:
    """Never: names are diffusers'."""
    return False


def describe(delta: Delta, shapes: Shapes) -> dict[str, str]:
    """Nothing: the keys say all."""
    return {}
