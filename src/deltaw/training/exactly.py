"""A network that computes in float32 while it is kept in less: one layer at a time is widened."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from deltaw.inject import LowRank


@contextlib.contextmanager
def exactly(network: nn.Module) -> Iterator[None]:
    """Within the context every layer's weights are float32 while it runs, for float32 inputs and no gradients.

    The answers are bit for bit those of `network.float()`, at the memory of the network as it is and one layer
    in float32. A packed layer (`int8`) widens itself; bfloat16 and float16 weights are exact in float32, so nothing has to be restored from a copy.
    """
    hooks = [hook for unit in _units(network) for hook in _hooks(unit)]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _units(network: nn.Module) -> Iterator[nn.Module]:
    """Modules with weights of their own; an adapted layer is one with its base, whose weights it uses itself."""
    if isinstance(network, LowRank) or next(network.parameters(recurse=False), None) is not None:
        yield network
    if not isinstance(network, LowRank):
        for child in network.children():
            yield from _units(child)


def _hooks(unit: nn.Module) -> tuple[RemovableHandle, RemovableHandle]:
    kept: dict[nn.Parameter, Tensor] = {}
    own = [
        p
        for p in unit.parameters(recurse=isinstance(unit, LowRank))
        if p.dtype is not torch.float32 and p.is_floating_point()
    ]

    def widen(*_: Any) -> None:
        for parameter in own:
            kept[parameter] = parameter.data
            parameter.data = parameter.data.float()

    def narrow(*_: Any) -> None:
        for parameter, data in kept.items():
            parameter.data = data
        kept.clear()

    return unit.register_forward_pre_hook(widen), unit.register_forward_hook(narrow, always_call=True)
