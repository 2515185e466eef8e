"""diffusers: `unet.<path>.lora_A.weight`, its present dialect, with alphas in the header.

diffusers' Stable Diffusion loader refuses a file with `.alpha` keys, and takes alpha for the rank where
nothing is said; so alphas are written as PEFT configurations in `lora_adapter_metadata`
(diffusers `loaders/lora_base.py`). Its middle generation (`lora.down`) is read here too.
"""

from __future__ import annotations

from collections.abc import Mapping

from deltaw.delta import Delta
from deltaw.families import Family
from deltaw.families.listing import COMPONENTS, Shapes
from deltaw.formats import alphas, keys

NAME = "diffusers"
ALGORITHMS = ("lora",)
ALPHA_IN_FILE = False
_COMPONENTS = tuple(f"{component}." for component in COMPONENTS)
_SUFFIX = {"lora.up": "lora_B.weight", "lora.down": "lora_A.weight", "lora.magnitude": "lora_magnitude_vector"}


def split(key: str) -> tuple[str, str] | None:
    """`unet.x.lora_B.weight` as `("unet.x", "lora.up")`."""
    if not key.startswith(_COMPONENTS) or ".processor." in key:
        return None
    return keys.split_dotted(key, {**keys.KOHYA_SUFFIXES, **keys.PEFT_SUFFIXES})


def places(family: Family, shapes: Shapes, metadata: Mapping[str, str]) -> keys.Places:
    """The names that are read; text-encoder paths also without the `text_model.` that transformers 5 drops."""
    named = dict(names(family, shapes))
    for name, place in list(named.items()):
        named.setdefault(name.replace(".text_model.", ".", 1), place)
    return named


def names(family: Family, shapes: Shapes) -> keys.Places:
    """The names that are written: the canonical paths themselves."""
    prefixes = {c.name: (c.name,) for c in family.components}
    return keys.named_places(keys.diffusers_places(family, shapes), prefixes, keys.dotted)


def key(stem: str, tensor: str, ndim: int) -> str:
    """The key of a canonical `algorithm.tensor`.

    Raises:
        KeyError: the dialect has no key for it.
    """
    return f"{stem}.{_SUFFIX[tensor]}"


def original(family: Family) -> bool:
    """Never: names are diffusers'."""
    return False


def describe(delta: Delta, shapes: Shapes) -> dict[str, str]:
    """The alphas as PEFT configurations in the header."""
    return alphas.in_header(delta, alphas.of_lora)
