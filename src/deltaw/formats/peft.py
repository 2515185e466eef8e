"""PEFT: a folder with `adapter_model.safetensors` and `adapter_config.json`, one a network.

Keys are `base_model.model.<path>.lora_A.weight`. A PEFT adapter belongs to one network, so a change of
several is a folder of such folders named after the components. Alphas are in the configuration.
"""

from __future__ import annotations

from collections.abc import Mapping

from deltaw.delta import Delta
from deltaw.families import Family
from deltaw.families.listing import Shapes
from deltaw.formats import alphas, keys

NAME = "peft"
ALGORITHMS = ("lora",)
ALPHA_IN_FILE = False
ROOT = "base_model.model."
_SUFFIX = {"lora.up": "lora_B.weight", "lora.down": "lora_A.weight", "lora.magnitude": "lora_magnitude_vector"}


def split(key: str) -> tuple[str, str] | None:
    """`base_model.model.unet.x.lora_B.weight` as `("base_model.model.unet.x", "lora.up")`."""
    return keys.split_dotted(key, keys.PEFT_SUFFIXES) if key.startswith(ROOT) else None


def places(family: Family, shapes: Shapes, metadata: Mapping[str, str]) -> keys.Places:
    """The names that are read, with the component (a folder of folders) and without (one adapter).

    Without it, the first component that has the path is meant; `metadata["deltaw.component"]` says which
    where PEFT's own files do not.
    """
    named: dict[str, keys.Place] = {}
    wanted = metadata.get("deltaw.component")
    for component, entries in keys.diffusers_places(family, shapes).items():
        for path, place in entries:
            named[f"{ROOT}{component}.{path}"] = place
            if wanted in (None, component):
                named.setdefault(f"{ROOT}{path}", place)
                named.setdefault(f"{ROOT}{path.removeprefix('text_model.')}", place)
    return named


def names(family: Family, shapes: Shapes) -> keys.Places:
    """The names that are written, component included; it becomes the folder."""
    return {f"{ROOT}{path}": keys.Place((path,)) for path in shapes}


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
    return alphas.in_header(delta)
