"""XLabs' FLUX.1: `double_blocks.0.processor.qkv_lora1.down.weight`, attention only, q, k and v as one.

`1` is the picture's stream and `2` the text's; the single blocks have `qkv_lora`, which leaves out the MLP that shares their
first layer, and `proj_lora`. There is no alpha: XLabs folds it into `up` (XLabs-AI/x-flux, `src/flux/modules/layers.py`;
diffusers `_convert_xlabs_flux_lora_to_diffusers` is the reader that is tested against).
"""

from __future__ import annotations

from collections.abc import Mapping

from deltaw.delta import Delta
from deltaw.families import Family
from deltaw.families.listing import Shapes
from deltaw.formats import keys

NAME = "xlabs"
ALGORITHMS = ("lora",)
ALPHA_IN_FILE = None
_SUFFIX = {"lora.up": "up.weight", "lora.down": "down.weight"}
_TENSOR = {suffix: tensor for tensor, suffix in _SUFFIX.items()}
_QKV = 3
"""Of the modules that the original code stacks, q, k and v come first."""
_NAMES = {
    "double_blocks": {"img_attn.qkv": "qkv_lora1", "txt_attn.qkv": "qkv_lora2", "img_attn.proj": "proj_lora1", "txt_attn.proj": "proj_lora2"},
    "single_blocks": {"linear1": "qkv_lora", "linear2": "proj_lora"},
}  # fmt: skip
"""Kind of block and the module's original name in it to XLabs' name."""


def split(key: str) -> tuple[str, str] | None:
    """`double_blocks.0.processor.qkv_lora1.up.weight` as `("double_blocks.0.processor.qkv_lora1", "lora.up")`."""
    key = key.removeprefix("diffusion_model.")
    if not key.startswith(tuple(f"{kind}." for kind in _NAMES)) or ".processor." not in key:
        return None
    return keys.split_dotted(key, _TENSOR)


def places(family: Family, shapes: Shapes, metadata: Mapping[str, str]) -> keys.Places:
    """The names that are read, which are those that are written."""
    return names(family, shapes)


def names(family: Family, shapes: Shapes) -> keys.Places:
    """The denoiser's attention, of a family whose original code has double and single blocks."""
    named: dict[str, keys.Place] = {}
    for name, place in keys.original_places(family, shapes)[family.denoiser]:
        kind, _, rest = name.partition(".")
        number, _, module = rest.partition(".")
        if (theirs := _NAMES.get(kind, {}).get(module)) is not None:
            named[f"{kind}.{number}.processor.{theirs}"] = keys.Place(place.paths[:_QKV])
    return named


def key(stem: str, tensor: str, ndim: int) -> str:
    """The key of a canonical `algorithm.tensor`.

    Raises:
        KeyError: the dialect has no key for it.
    """
    return f"{stem}.{_SUFFIX[tensor]}"


def original(family: Family) -> bool:
    """Blocks are numbered as diffusers numbers them."""
    return False


def describe(delta: Delta, shapes: Shapes) -> dict[str, str]:
    """Nothing: the keys say all."""
    return {}
