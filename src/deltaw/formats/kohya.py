"""kohya: `lora_unet_<path with underscores>.lora_down.weight`, the dialect that every tool reads.

The denoiser's modules go by their original names, except for SD 1 and SD 2, whose files always had
diffusers' block names. Both are read. LyCORIS' algorithms come in the same dialect with their own suffixes.
"""

from __future__ import annotations

from collections.abc import Mapping

from deltaw.delta import Delta
from deltaw.families import Family
from deltaw.families.listing import Shapes
from deltaw.formats import keys

NAME = "kohya"
ALGORITHMS = keys.LYCORIS
ALPHA_IN_FILE = True


def split(key: str) -> tuple[str, str] | None:
    """`lora_unet_x.lora_up.weight` as `("lora_unet_x", "lora.up")`."""
    if not key.startswith(("lora_", "lycoris_", "oft_unet_")):
        return None
    return keys.split_flat(key, keys.KOHYA_SUFFIXES)


def places(family: Family, shapes: Shapes, metadata: Mapping[str, str]) -> keys.Places:
    """All names that are read: original and diffusers', under every prefix seen in files."""
    prefixes = {c.name: (c.kohya, *c.aliases) for c in family.components}
    named = keys.named_places(keys.diffusers_places(family, shapes), prefixes, keys.flat)
    return {**named, **keys.named_places(keys.original_places(family, shapes), prefixes, keys.flat)}


def names(family: Family, shapes: Shapes) -> keys.Places:
    """The names that are written, one a module (or one for fused modules)."""
    prefixes = {c.name: (c.kohya,) for c in family.components}
    made = keys.original_places if family.kohya_original else keys.diffusers_places
    return keys.named_places(made(family, shapes), prefixes, keys.flat)


def key(stem: str, tensor: str, ndim: int) -> str:
    """The key of a canonical `algorithm.tensor`; `ndim` is that of the module's weight (1: a norm)."""
    return f"{stem}.{keys.kohya_suffix(tensor, ndim)}"


def original(family: Family) -> bool:
    """Whether names follow the original code: not those of SD 1 and SD 2."""
    return family.kohya_original


def describe(delta: Delta, shapes: Shapes) -> dict[str, str]:
    """Nothing: the keys say all."""
    return {}
