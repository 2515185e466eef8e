"""Frozen convolutions that keep nothing for the backward, and are one matrix product where their weights outweigh the picture.

A convolution's gradient to its input needs the weights alone, but autograd keeps the input too. And on a CPU oneDNN copies
the weights into an order of its own in every call: for the deepest layers, 59 MB of weights over 4×4 pixels,
that takes ten times as long as the arithmetic. A matrix product reads them as they lie (`python -m benchmarks.convolution`).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.grad import conv2d_input

MOST_PIXELS = {torch.bfloat16: ((1 << 24, 256), (1 << 22, 128)), torch.float32: ((1 << 24, 128),)}
"""Weights from which on, and pixels (pictures × height × width) up to which, the product is the faster one. From 2²⁴ weights
on the C library asks the system for the copy's memory in every call."""


class _FrozenConvolution(torch.autograd.Function):
    """A convolution whose weights are not trained; it keeps them alone."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, how: tuple[Any, ...]) -> Tensor:
        ctx.save_for_backward(weight)
        ctx.how, ctx.size = how, x.shape
        return functional.conv2d(x, weight, bias, *how)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (weight,) = ctx.saved_tensors
        return conv2d_input(ctx.size, weight, grads[0], *ctx.how), None, None, None


class _ConvolutionProduct(torch.autograd.Function):
    """The same for 3×3 weights at stride 1, padded by 1, as W·columns: W `(out, 9·in)`, columns `(9·in, pixels)`."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(weight)
        ctx.size = x.shape[2:]
        columns = functional.unfold(x, 3, padding=1).transpose(0, 1).flatten(1)
        flat = weight.flatten(1)
        y = flat @ columns if bias is None else torch.addmm(bias[:, None], flat, columns)
        return y.view(-1, len(x), *ctx.size).transpose(0, 1).contiguous()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (weight,) = ctx.saved_tensors
        rows = grads[0].flatten(2).transpose(1, 2).flatten(0, 1)  # (pixels, out), so that W is read as it lies
        columns = (rows @ weight.flatten(1)).unflatten(0, (len(grads[0]), -1)).transpose(1, 2)
        grad = functional.fold(columns.float(), ctx.size, 3, padding=1)  # nine terms, added before they are rounded
        return grad.to(rows.dtype), None, None


class FrozenConv2d(nn.Conv2d):
    """A Conv2d whose weights are not trained: the same results, as `_FrozenConvolution` or `_ConvolutionProduct`.

    Where they are, as in a layer that another library makes of this class, it is an ordinary one.
    """

    is_on_cpu = False

    def forward(self, input: Tensor) -> Tensor:
        """(n, in, h, w) -> (n, out, h', w')."""
        if self.weight.requires_grad:
            return super().forward(input)
        if self._is_faster_as_product(input):
            return _ConvolutionProduct.apply(input, self.weight, self.bias)  # type: ignore[no-any-return]
        how = (self.stride, self.padding, self.dilation, self.groups)
        return _FrozenConvolution.apply(input, self.weight, self.bias, how)  # type: ignore[no-any-return]

    def _is_faster_as_product(self, x: Tensor) -> bool:
        is_usual = (self.kernel_size, self.stride, self.padding) == ((3, 3), (1, 1), (1, 1)) and self.dilation == (1, 1)
        if not (is_usual and self.groups == 1 and self.is_on_cpu):
            return False
        n_pixels = x.shape[0] * x.shape[2] * x.shape[3]
        rules = MOST_PIXELS.get(x.dtype, ())
        return any(self.weight.numel() >= weights and n_pixels <= most for weights, most in rules)


def freeze(network: nn.Module, device: torch.device) -> None:
    """Makes every plain Conv2d of a frozen network one that keeps nothing.

    Args:
        network: changed in place.
        device: where it will run, which the meta device cannot tell.
    """
    for module in network.modules():
        if type(module) is nn.Conv2d and module.padding_mode == "zeros" and not isinstance(module.padding, str):
            module.__class__ = FrozenConv2d
            module.is_on_cpu = device.type == "cpu"  # type: ignore[assignment]  # it is a FrozenConv2d by now
