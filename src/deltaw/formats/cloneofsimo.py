"""cloneofsimo/lora: `unet:17:up`, keys that count the modules of certain classes in the network's order.

Which classes is in the header (`unet = ["CrossAttention", "Attention", "GEGLU"]`); the order is that of the
diffusers of early 2023: down, up, middle blocks; attentions before resnets; attn1, feed-forward, attn2.
There is no alpha: the scale is folded into `up`. (cloneofsimo `lora_diffusion/lora.py`, `_find_modules_v2`,
`save_safeloras_with_embeds`.)
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping

from deltaw.delta import Delta
from deltaw.families import Family
from deltaw.families.listing import Shapes
from deltaw.formats import keys

NAME = "cloneofsimo"
ALGORITHMS = ("lora",)
ALPHA_IN_FILE = None

_KEY = re.compile(r"(unet|text_encoder):(\d+):(up|down)")
_CLASSES = {
    "CrossAttention": r"\.attn[12]\.to_(q|k|v|out\.0)$",
    "Attention": r"\.attn[12]\.to_(q|k|v|out\.0)$",
    "GEGLU": r"\.ff\.net\.0\.proj$",
    "ResnetBlock2D": r"\.resnets\.\d+\.(conv1|time_emb_proj|conv2|conv_shortcut)$",
    "CLIPAttention": r"\.self_attn\.(k|v|q|out)_proj$",
}
_USUAL = {"unet": ("CrossAttention", "Attention", "GEGLU"), "text_encoder": ("CLIPAttention",)}
_ORDER = {name: i for i, name in enumerate((
    "conv_in", "time_embedding", "down_blocks", "up_blocks", "mid_block", "attentions", "resnets", "downsamplers",
    "upsamplers", "attn1", "ff", "attn2", "to_q", "to_k", "to_v", "to_out", "conv1", "time_emb_proj", "conv2",
    "conv_shortcut", "k_proj", "v_proj", "q_proj", "out_proj",
))}  # fmt: skip


def split(key: str) -> tuple[str, str] | None:
    """`unet:17:up` as `("unet:17", "lora.up")`."""
    match = _KEY.fullmatch(key)
    return (f"{match[1]}:{match[2]}", f"lora.{match[3]}") if match else None


def places(family: Family, shapes: Shapes, metadata: Mapping[str, str]) -> keys.Places:
    """What each number means, by the classes that the header names (or the usual ones)."""
    named: dict[str, keys.Place] = {}
    for component in _USUAL:
        for i, path in enumerate(_counted(component, shapes, _classes(component, metadata))):
            named[f"{component}:{i}"] = keys.Place((path,))
    return named


def names(family: Family, shapes: Shapes) -> keys.Places:
    """The numbers that are written: attention and GEGLU, as the tool counts by default."""
    return places(family, shapes, {})


def key(stem: str, tensor: str, ndim: int) -> str:
    """The key of a canonical `algorithm.tensor`.

    Raises:
        KeyError: the dialect has no key for it.
    """
    return f"{stem}:{ {'lora.up': 'up', 'lora.down': 'down'}[tensor] }"


def original(family: Family) -> bool:
    """The numbers count the modules of the base."""
    return True


def describe(delta: Delta, shapes: Shapes) -> dict[str, str]:
    """The counted classes and every module's rank.

    Raises:
        ValueError: a module that the numbers count has no change, so that they would shift for the reader.
    """
    found: dict[str, str] = {}
    for component, classes in _USUAL.items():
        if not any(path.startswith(f"{component}.") for path in delta.updates):
            continue
        found[component] = json.dumps(list(classes))
        for i, path in enumerate(_counted(component, shapes, classes)):
            if path not in delta.updates:
                raise ValueError(f"it counts all modules of {', '.join(classes)}, and {path} is missing")
            found[f"{component}:{i}:rank"] = str(delta.updates[path].tensors["down"].shape[0])
    return found


def _classes(component: str, metadata: Mapping[str, str]) -> Iterable[str]:
    try:
        named = json.loads(metadata.get(component, "null"))
    except ValueError:
        named = None
    return named if isinstance(named, list) and all(isinstance(name, str) for name in named) else _USUAL[component]


def _counted(component: str, shapes: Shapes, classes: Iterable[str]) -> list[str]:
    """The component's modules of these classes in the order of counting; none if a class is not known."""
    classes = list(classes)
    if any(name not in _CLASSES for name in classes):
        return []
    pattern = re.compile("|".join(_CLASSES[name] for name in classes))
    own = [path for path in shapes if path.startswith(f"{component}.") and pattern.search(path)]
    return sorted(
        own, key=lambda path: [int(part) if part.isdigit() else _ORDER.get(part, -1) for part in path.split(".")]
    )
