"""diffusers before 2023's attention rewrite: `unet.….attn1.processor.to_q_lora.down.weight`.

Only attention projections can be written so, and alpha always is the rank.
"""

from __future__ import annotations

from collections.abc import Mapping

from deltaw.delta import Delta
from deltaw.families import Family
from deltaw.families.listing import Shapes
from deltaw.formats import keys

NAME = "diffusers-old"
ALGORITHMS = ("lora",)
ALPHA_IN_FILE = None
_PROJECTIONS = ("to_q", "to_k", "to_v", "to_out.0")
_SUFFIX = {"lora.up": "up.weight", "lora.down": "down.weight"}
_TENSOR = {suffix: tensor for tensor, suffix in _SUFFIX.items()}


def split(key: str) -> tuple[str, str] | None:
    """`unet.x.processor.to_q_lora.up.weight` as `("unet.x.processor.to_q_lora", "lora.up")`."""
    return keys.split_dotted(key, _TENSOR) if ".processor." in key and "_lora." in key else None


def places(family: Family, shapes: Shapes, metadata: Mapping[str, str]) -> keys.Places:
    """The names that are read; the very first files had no `unet.`."""
    named = dict(names(family, shapes))
    return {**named, **{name.partition(".")[2]: place for name, place in named.items()}}


def names(family: Family, shapes: Shapes) -> keys.Places:
    """The names that are written: the denoiser's attention projections."""
    named: dict[str, keys.Place] = {}
    for path in shapes:
        for projection in _PROJECTIONS:
            if path.startswith(f"{family.denoiser}.") and path.endswith(f".{projection}"):
                block = path.removesuffix(f".{projection}")
                named[f"{block}.processor.{projection.removesuffix('.0')}_lora"] = keys.Place((path,))
    return named


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
    """Nothing: the keys say all."""
    return {}
