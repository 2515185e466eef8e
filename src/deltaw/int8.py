"""Frozen linear layers kept in 8 bits: half of bfloat16's memory, computed in the input's precision.

Each row of W is kept as whole numbers of -127 to 127 and the one number that they are multiples of (row-wise absmax
quantisation, Dettmers et al. 2022, arXiv 2208.07339, section 2.1). Every product widens a layer's numbers again and forgets
them: what stays for the backward pass is the 8 bits.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

MOST = 127
LEAST_NUMBERS = 1 << 16
"""Weights from which a layer is packed: smaller ones save little, and the first and last layers are among them."""


def pack(weight: Tensor) -> tuple[Tensor, Tensor]:
    """W (out, in) as whole numbers (out, in) int8 and each row's unit (out,) float32; off by some 0.8 % of ‖W‖."""
    wide = weight.float()
    unit = wide.abs().amax(1).clamp(min=torch.finfo(torch.float32).tiny) / MOST
    return (wide / unit[:, None]).round().to(torch.int8), unit


def unpack(weight: Tensor, unit: Tensor | None, dtype: torch.dtype) -> Tensor:
    """W (out, in) in a precision; a `unit` of None means that it is not packed and is given back as it is."""
    return weight if unit is None else weight.to(dtype).mul_(unit[:, None].to(dtype))


class Int8Linear(nn.Linear):
    """A frozen Linear whose weight is `pack`ed.

    Args:
        weight: whole numbers (out, in) int8.
        unit: of each row (out,).
        bias: (out,) or None.
    """

    unit: Tensor

    def __init__(self, weight: Tensor, unit: Tensor, bias: Tensor | None):
        nn.Module.__init__(self)
        self.out_features, self.in_features = weight.shape
        self.weight = nn.Parameter(weight, requires_grad=False)
        self.register_buffer("unit", unit)  # diffusers takes the first parameter's precision for the network's
        self.bias = None if bias is None else nn.Parameter(bias, requires_grad=False)

    def forward(self, input: Tensor) -> Tensor:
        """(…, in) -> (…, out) in the dtype of the input."""
        return _Product.apply(input, self.weight, self.unit, self.bias)  # type: ignore[no-any-return]


class _Product(torch.autograd.Function):
    """y = x·Wᵀ + b that keeps W packed for the backward pass, and no x."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, unit: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(weight, unit)
        return functional.linear(x, unpack(weight, unit, x.dtype), bias)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        weight, unit = ctx.saved_tensors
        return grads[0] @ unpack(weight, unit, grads[0].dtype), None, None, None


def fits(module: nn.Module) -> bool:
    """Whether a layer is one that is packed."""
    return type(module) is nn.Linear and module.weight.numel() >= LEAST_NUMBERS


def pack_all(network: nn.Module) -> None:
    """Replaces the large linear layers of a frozen network; on the meta device too, where nothing is computed."""
    for path, module in list(network.named_modules()):
        if fits(module):
            put(network, path, packed(module))


def packed(linear: nn.Module) -> Int8Linear:
    """A Linear's packed twin."""
    assert isinstance(linear, nn.Linear)
    return Int8Linear(*pack(linear.weight.detach()), None if linear.bias is None else linear.bias.detach())


def put(network: nn.Module, path: str, module: nn.Module) -> None:
    """Lets a module of the network be another one."""
    parent, _, name = path.rpartition(".")
    setattr(network.get_submodule(parent), name, module)
