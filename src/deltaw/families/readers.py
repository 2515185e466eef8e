"""Which layers of a network read the same x, so that a GPU can compute them as one (`joined`), and how diffusers is told."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from diffusers.models.attention_processor import Attention, AttnProcessor2_0, FusedAttnProcessor2_0
from diffusers.models.transformers.transformer_flux import FluxAttnProcessor
from torch import nn

from deltaw import joined
from deltaw.families.streams import PICTURE, TEXT, FluxStreams, JointStreams
from deltaw.flat import Flat
from deltaw.inject import Wrapped

LEAST_WEIGHTS = 1 << 29
"""Of a network whose layers are joined: the kernels take seconds to build, which small networks do not win back."""


@dataclass(frozen=True)
class Readers:
    """The layers of an attention that read the same x.

    Args:
        attention: the module.
        groups: name under which diffusers' processor for fused layers calls a group, to the paths of its members.
    """

    attention: Any
    groups: Mapping[str, tuple[str, ...]]

    def use(self, found: Mapping[str, joined.Joined]) -> None:
        """Lets the attention call its groups, by name, instead of their members."""
        for name, group in found.items():
            setattr(self.attention, name, group)
        if isinstance(self.attention.processor, AttnProcessor2_0):
            self.attention.set_processor(FusedAttnProcessor2_0())
        else:
            self.attention.fused_projections = True


def of(network: nn.Module) -> Iterator[Readers]:
    """Every attention whose processor has a fused twin that computes the same."""
    for path, module in network.named_modules():
        if isinstance(module, Attention) and isinstance(module.processor, AttnProcessor2_0):
            kinds = {"to_kv": PICTURE[1:]} if module.is_cross_attention else {"to_qkv": PICTURE}
        elif isinstance(getattr(module, "processor", None), FluxAttnProcessor | FluxStreams | JointStreams):
            attn: Any = module
            kinds = {"to_qkv": PICTURE, **({"to_added_qkv": TEXT} if attn.added_kv_proj_dim is not None else {})}
        else:
            continue
        yield Readers(module, {name: tuple(f"{path}.{m}" for m in members) for name, members in kinds.items()})


def gather(network: nn.Module, wrapped: Wrapped, device: torch.device, dtype: torch.dtype) -> tuple[Flat, str]:
    """The trained numbers in one buffer; on a GPU adapted layers are joined where that pays.

    Args:
        network: wrapped; its attention is changed in place where layers are joined.
        wrapped: the adapters.
        device: where it is.
        dtype: that it computes in.

    Returns:
        the buffer, and why layers are not joined, "" where they are or where nothing speaks of it.
    """
    large = sum(p.numel() for p in network.parameters()) >= LEAST_WEIGHTS
    if device.type != "cuda" or dtype is not torch.bfloat16 or not large:
        return Flat(wrapped.parameters()), ""
    if why := joined.broken(device):
        return Flat(wrapped.parameters()), why
    return join(network, wrapped, dtype), ""


def join(network: nn.Module, wrapped: Wrapped, dtype: torch.dtype) -> Flat:
    """Joins every adapted linear layer with those that read the same x, or makes it a group of its own."""
    modules = wrapped.modules
    fused = [
        readers
        for readers in of(network)
        if all(all(p in modules for p in paths) and joined.fit([modules[p] for p in paths]) for paths in readers.groups.values())
    ]  # fmt: skip
    groups = [paths for readers in fused for paths in readers.groups.values()]
    in_groups = {path for paths in groups for path in paths}
    alone = [(path,) for path, m in modules.items() if path not in in_groups and joined.fit([m])]
    flat = Flat(wrapped.parameters(), joined.order([*groups, *alone]), dtype)
    found = {group.names: group for group in joined.join([*groups, *alone], modules, flat)}
    for readers in fused:
        readers.use({name: found[paths] for name, paths in readers.groups.items()})
    return flat
