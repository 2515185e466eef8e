"""How a frozen network computes: with the same results as diffusers' own, up to rounding, in less time or memory."""

from __future__ import annotations

import torch
from torch import nn

from deltaw.families import attention, convolution, gate, streams


def speed_up(network: nn.Module, device: torch.device, dtype: torch.dtype) -> None:
    """Gives a frozen diffusers network the layers that are faster, or keep less, where it will run.

    Args:
        network: changed in place; its weights are not.
        device: where it will run.
        dtype: that it will compute in.
    """
    attention.speed_up(network, device, dtype)
    convolution.freeze(network, device)
    gate.speed_up(network, device, dtype)
    streams.speed_up(network, device, dtype)
