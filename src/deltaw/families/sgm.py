"""Names of the U-Net of SD 1, SD 2 and SDXL in the code it was published with (CompVis, Stability sgm).

There the blocks are numbered through: `input_blocks.N`, `middle_block`, `output_blocks.N`, each a
list of layers; diffusers groups them by resolution. The numbers follow from the block's depth, so one
rule covers every width and depth.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from deltaw.families.family import Original

_RESNET = {
    "norm1": "in_layers.0", "conv1": "in_layers.2", "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0", "conv2": "out_layers.3", "conv_shortcut": "skip_connection",
}  # fmt: skip
_OUTSIDE = {
    "conv_in": "input_blocks.0.0", "conv_norm_out": "out.0", "conv_out": "out.2",
    "time_embedding.linear_1": "time_embed.0", "time_embedding.linear_2": "time_embed.2",
    "add_embedding.linear_1": "label_emb.0.0", "add_embedding.linear_2": "label_emb.0.2",
}  # fmt: skip
_BLOCK = re.compile(r"(down|up)_blocks\.(\d+)\.(resnets|attentions|downsamplers|upsamplers)\.(\d+)\.(.+)")
_MIDDLE = re.compile(r"mid_block\.(resnets|attentions)\.(\d+)\.(.+)")


def original(paths: Iterable[str]) -> list[Original]:
    """Original names of the U-Net's modules; `paths` tell how many layers its blocks have."""
    paths = list(paths)
    blocks = [match.groups() for match in map(_BLOCK.match, paths) if match]
    n_layers = 1 + max((int(i) for side, _, kind, i, _ in blocks if side == "down" and kind == "resnets"), default=0)
    with_attention = {(side, block) for side, block, kind, _, _ in blocks if kind == "attentions"}
    return [Original(_name(path, n_layers, with_attention), (path,)) for path in paths]


def _name(path: str, n_layers: int, with_attention: set[tuple[str, str]]) -> str:
    if path in _OUTSIDE:
        return _OUTSIDE[path]
    if match := _MIDDLE.fullmatch(path):
        kind, index, rest = match.groups()
        return f"middle_block.{2 * int(index) + (kind == 'attentions')}.{_inner(kind, rest)}"
    match = _BLOCK.fullmatch(path)
    if not match:
        raise KeyError(f"no original name is known for {path}")
    side, block, kind, index, rest = match.groups()
    if side == "down":
        at = 1 + int(block) * (n_layers + 1)
        if kind == "downsamplers":
            return f"input_blocks.{at + n_layers}.0.op"
        return f"input_blocks.{at + int(index)}.{int(kind == 'attentions')}.{_inner(kind, rest)}"
    at = int(block) * (n_layers + 1)
    if kind == "upsamplers":
        return f"output_blocks.{at + n_layers}.{1 + ((side, block) in with_attention)}.conv"
    return f"output_blocks.{at + int(index)}.{int(kind == 'attentions')}.{_inner(kind, rest)}"


def _inner(kind: str, rest: str) -> str:
    return _RESNET[rest] if kind == "resnets" else rest
