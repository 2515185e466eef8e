"""PEFT: a folder with `adapter_model.safetensors` and `adapter_config.json`, one a network.

Keys are `base_model.model.<path>.lora_A.weight`. A PEFT adapter belongs to one network and is of one kind (`peft_kinds`),
so a change of several networks is a folder of such folders named after the components. Alphas are in the configuration.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from deltaw.delta import Delta, Update
from deltaw.families import Family
from deltaw.families.listing import Shapes
from deltaw.formats import alphas, keys, peft_kinds

NAME = "peft"
ALGORITHMS = tuple(peft_kinds.KINDS.values())
ALPHA_IN_FILE = False
ROOT = "base_model.model."
_OTHERS = {
    **{suffix: tensor for suffix, tensor in keys.KOHYA_SUFFIXES.items() if tensor.startswith(("loha.", "lokr."))},
    "oft_R.weight": "oft-input.skew", "ia3_l": "scale.l",
}  # fmt: skip
_READ = {
    **keys.PEFT_SUFFIXES, **_OTHERS, **{f"{suffix}.default": tensor for suffix, tensor in _OTHERS.items()},
    "oft_R.default.weight": "oft-input.skew", "lora_B.bias": "lora.bias",
}  # fmt: skip
_SUFFIX = {
    "lora.up": "lora_B.weight", "lora.down": "lora_A.weight", "lora.magnitude": "lora_magnitude_vector",
    **{tensor: suffix for suffix, tensor in _OTHERS.items()},
}  # fmt: skip


def split(key: str) -> tuple[str, str] | None:
    """`base_model.model.unet.x.lora_B.weight` as `("base_model.model.unet.x", "lora.up")`."""
    return keys.split_dotted(key, _READ) if key.startswith(ROOT) else None


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
    """A PEFT configuration a component, in the header until it becomes a file.

    Raises:
        ValueError: the changes of a component are of several kinds, or PEFT would make other tensors of its configuration.
    """

    def configured(component: str, own: Mapping[str, Update]) -> dict[str, Any]:
        found = {update.algorithm for update in own.values()}
        if found == {"lora"}:
            return alphas.of_lora(component, own)
        if len(found) > 1:
            raise ValueError(f"an adapter is of one kind, and {component} has {' and '.join(sorted(found))}")
        shapes_of = {path: shapes[f"{component}.{path}"] for path in own}
        return peft_kinds.config(found.pop(), {path: update.tensors for path, update in own.items()}, shapes_of)

    return alphas.in_header(delta, configured)
