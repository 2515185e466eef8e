"""Attention as matrix products and a softmax, piece by piece, where that is faster than torch's fused kernel.

On a CPU torch's fused attention reaches a fraction, in bfloat16, of what oneDNN's products do: plain operations take
a third to two thirds of its time (`python -m benchmarks.attention`), as long as the weights that they write and read
stay in the processor's cache.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from diffusers.models.attention_processor import Attention, AttnProcessor2_0
from torch import Tensor, nn
from torch.nn import functional

PIECE = 1 << 23
"""Weights (pictures × heads × queries × keys) that are made at a time: 17 MB in bfloat16."""
KEPT = 1 << 24
"""Weights of a layer up to which they are kept for the backward pass, which takes a quarter to a third less time then."""

FEW = 1 << 13
"""Weights of a layer up to which it is computed in float32: that takes no longer, and needs none of the kernels that oneDNN compiles for
each bfloat16 product of another shape, which take half a megabyte each."""


def attend(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """softmax(q·kᵀ/√d)·v (Vaswani et al. 2017, equation 1) of (n, heads, tokens, d) tensors, in the way that is fastest."""
    n_weights = query[..., 0].numel() * key.shape[2]
    if n_weights <= FEW:
        return in_float32(query, key, value)
    is_trained = torch.is_grad_enabled() and any(x.requires_grad for x in (query, key, value))
    return (whole if is_trained and n_weights <= KEPT else piecewise)(query, key, value)


def whole(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Attention at once; the backward pass needs its weights."""
    weights = torch.matmul(query * query.shape[-1] ** -0.5, key.transpose(-1, -2)).softmax(-1)
    return torch.matmul(weights, value)


def in_float32(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """The same, computed in float32 and rounded."""
    return whole(query.float(), key.float(), value.float()).to(query.dtype)


def piecewise(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Attention of some queries at a time, whose weights the backward pass makes again.

    That is what the fused kernel does too (Dao et al. 2022, arXiv 2205.14135), in far smaller pieces.
    """
    return _Piecewise.apply(query, key, value)  # type: ignore[no-any-return]


class _Piecewise(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        n, heads, n_tok, width = query.shape
        scale = width**-0.5
        q, k, v = (x.reshape(n * heads, -1, width).contiguous() for x in (query * scale, key, value))
        out = torch.empty(n, n_tok, heads, width, dtype=q.dtype, device=q.device)  # as the next layer reads it
        for begin, end, room, weights in _pieces(q, k):
            _weigh(q[:, begin:end], k, room, weights)
            out[:, begin:end] = torch.bmm(weights, v).view(n, heads, -1, width).transpose(1, 2)
        ctx.save_for_backward(q, k, v)
        ctx.scale, ctx.heads = scale, heads
        return out.transpose(1, 2)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, ...]:
        q, k, v = ctx.saved_tensors
        g = grads[0].reshape(q.shape).contiguous()
        of_q = torch.empty_like(q)
        of_k, of_v = (torch.zeros_like(x, dtype=torch.float32) for x in (k, v))  # sums over pieces
        for begin, end, room, weights in _pieces(q, k):
            part, given = q[:, begin:end], g[:, begin:end]
            _weigh(part, k, room, weights)
            of_v += torch.bmm(weights.transpose(1, 2), given)
            torch.bmm(given, v.transpose(1, 2), out=room)
            torch.ops.aten._softmax_backward_data.out(room, weights, -1, room.dtype, grad_input=room)
            of_k += torch.bmm(room.transpose(1, 2), part)
            of_q[:, begin:end] = torch.bmm(room, k)
        of_q *= ctx.scale
        return tuple(x.to(q.dtype).unflatten(0, (-1, ctx.heads)) for x in (of_q, of_k, of_v))


def _pieces(q: Tensor, k: Tensor) -> Iterator[tuple[int, int, Tensor, Tensor]]:
    """Beginning and end of each piece of the queries, and two tensors (n·heads, queries, keys): room, and room for its weights.

    All pieces share them: memory that is asked for anew every time would take longer to get than to fill.
    """
    batch, n_tok = q.shape[:2]
    row = batch * k.shape[1]
    step = -(-n_tok // -(-n_tok * row // PIECE))
    shared = torch.empty(2, step * row, dtype=q.dtype, device=q.device)
    for begin in range(0, n_tok, step):
        end = min(begin + step, n_tok)
        room, weights = shared[:, : (end - begin) * row].view(2, batch, end - begin, -1)
        yield begin, end, room, weights


def _weigh(q: Tensor, k: Tensor, room: Tensor, weights: Tensor) -> None:
    """Writes softmax(q·kᵀ) into `weights`."""
    torch.bmm(q, k.transpose(1, 2), out=room)
    torch.ops.aten._softmax.out(room, -1, False, out=weights)


class PlainAttention:
    """A processor for diffusers' attention layers: `attend` in bfloat16."""

    def __init__(self) -> None:
        self.masked = AttnProcessor2_0()

    def __call__(
        self,
        attn: Any,  # an Attention, whose parts diffusers declares as perhaps missing
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        temb: Tensor | None = None,
    ) -> Tensor:
        """(n, queries, width) -> the same; keys and values come from `encoder_hidden_states` where given."""
        if attention_mask is not None:
            return self.masked(attn, hidden_states, encoder_hidden_states, attention_mask, temb)
        seen = hidden_states if encoder_hidden_states is None else encoder_hidden_states
        query, key, value = (
            project(x).unflatten(-1, (attn.heads, -1)).transpose(1, 2)
            for project, x in ((attn.to_q, hidden_states), (attn.to_k, seen), (attn.to_v, seen))
        )
        is_exact = query.dtype is not torch.bfloat16  # as where a file is proved
        mixed = (functional.scaled_dot_product_attention if is_exact else attend)(query, key, value)
        return attn.to_out[1](attn.to_out[0](mixed.transpose(1, 2).flatten(2)))


def pays(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether the plain operations are faster there; on GPUs the fused kernels are."""
    return device.type == "cpu" and dtype is torch.bfloat16


def speed_up(network: nn.Module, device: torch.device, dtype: torch.dtype) -> None:
    """Gives every ordinary attention layer of a diffusers network `PlainAttention` where that pays; unusual ones keep their own.

    Args:
        network: changed in place.
        device: where it will run.
        dtype: that it will compute in.
    """
    if not pays(device, dtype):
        return
    for module in network.modules():
        if isinstance(module, Attention) and _is_ordinary(module):
            module.set_processor(PlainAttention())  # type: ignore[arg-type]  # whatever is called like one is one


def _is_ordinary(attn: Any) -> bool:
    extras = (attn.group_norm, attn.spatial_norm, attn.norm_q, attn.norm_k, attn.norm_cross, attn.residual_connection)
    return isinstance(attn.processor, AttnProcessor2_0) and not any(extras) and attn.rescale_output_factor == 1
