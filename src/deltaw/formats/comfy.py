"""ComfyUI: `diffusion_model.<original path>.lora_A.weight`, also what ai-toolkit and diffusion-pipe write.

Text encoders go as `text_encoders.clip_l.transformer.<path>`. LyCORIS' suffixes may follow the same names.
"""

from __future__ import annotations

from collections.abc import Mapping

from deltaw.delta import Delta
from deltaw.families import Family
from deltaw.families.listing import Shapes
from deltaw.formats import keys

NAME = "comfy"
ALGORITHMS = tuple(name for name in keys.LYCORIS if name != "ia3")
ALPHA_IN_FILE = True
_SUFFIXES = {s: t for s, t in {**keys.KOHYA_SUFFIXES, **keys.PEFT_SUFFIXES}.items() if not t.startswith("ia3.")}
_SUFFIX = {"lora.up": "lora_B.weight", "lora.down": "lora_A.weight"}


_BARE = ("double_blocks.", "single_blocks.", "joint_blocks.", "input_blocks.", "middle_block.", "output_blocks.")
"""First words of original names that some trainers write without a prefix."""


def split(key: str) -> tuple[str, str] | None:
    """`diffusion_model.x.lora_B.weight` as `("diffusion_model.x", "lora.up")`; a bare original name counts as prefixed."""
    key = key.removeprefix("model.")
    if key.startswith(_BARE):
        key = f"diffusion_model.{key}"
    if not key.startswith(("diffusion_model.", "text_encoders.")):
        return None
    return keys.split_dotted(key, _SUFFIXES)


def places(family: Family, shapes: Shapes, metadata: Mapping[str, str]) -> keys.Places:
    """The names that are read: original and, as some trainers write, diffusers' after the same prefix."""
    prefixes = {c.name: (c.comfy,) for c in family.components}
    named = keys.named_places(keys.diffusers_places(family, shapes), prefixes, keys.dotted)
    return {**named, **names(family, shapes)}


def names(family: Family, shapes: Shapes) -> keys.Places:
    """The names that are written: the denoiser's original ones."""
    prefixes = {c.name: (c.comfy,) for c in family.components}
    return keys.named_places(keys.original_places(family, shapes), prefixes, keys.dotted)


def key(stem: str, tensor: str, ndim: int) -> str:
    """The key of a canonical `algorithm.tensor`."""
    return f"{stem}.{_SUFFIX.get(tensor) or keys.kohya_suffix(tensor, ndim)}"


def original(family: Family) -> bool:
    """Always."""
    return True


def describe(delta: Delta, shapes: Shapes) -> dict[str, str]:
    """Nothing: the keys say all."""
    return {}
