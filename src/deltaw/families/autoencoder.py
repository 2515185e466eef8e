"""Names of the AutoencoderKL in the code it was published with (CompVis latent-diffusion), as single files keep them.

There the decoder's blocks are numbered from the last to the first, and its attention is made of convolutions of 1×1.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from deltaw.families.family import Original

PREFIX = "first_stage_model."
"""Before every name of the VAE in a single file."""
_BLOCK = re.compile(r"(encoder|decoder)\.(down|up)_blocks\.(\d+)\.(resnets|downsamplers|upsamplers)\.(\d+)\.(.+)")
_MIDDLE = re.compile(r"(encoder|decoder)\.mid_block\.(resnets|attentions)\.(\d+)\.(.+)")
_ATTENTION = {"group_norm": "norm", "to_q": "q", "to_k": "k", "to_v": "v", "to_out.0": "proj_out"}


def original(paths: Iterable[str]) -> list[Original]:
    """Original names of the VAE's modules; `paths` tell how many blocks its decoder has."""
    paths = list(paths)
    found = [match for match in map(_BLOCK.fullmatch, paths) if match]
    last = max((int(match[3]) for match in found if match[2] == "up"), default=0)
    return [Original(_name(path, last), (path,)) for path in paths]


def _name(path: str, last: int) -> str:
    if match := _BLOCK.fullmatch(path):
        side, way, block, kind, index, rest = match.groups()
        at = f"{side}.{way}.{last - int(block) if way == 'up' else block}"
        if kind != "resnets":
            return f"{at}.{way}sample.{rest}"
        return f"{at}.block.{index}.{_resnet(rest)}"
    if match := _MIDDLE.fullmatch(path):
        side, kind, index, rest = match.groups()
        if kind == "attentions":
            return f"{side}.mid.attn_{int(index) + 1}.{_ATTENTION[rest]}"
        return f"{side}.mid.block_{int(index) + 1}.{_resnet(rest)}"
    return path.replace("conv_norm_out", "norm_out")


def _resnet(rest: str) -> str:
    return rest.replace("conv_shortcut", "nin_shortcut")
