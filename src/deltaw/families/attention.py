"""Attention as two matrix products and a softmax, where that is faster than torch's fused kernel.

On a CPU the backward of torch's fused attention reaches a fraction, in bfloat16, of what oneDNN's products do: at 64 to
1024 tokens the three plain operations take half its time or less (`python -m benchmarks.attention`). They keep
the attention weights for the backward, so where these are many the fused kernel stays.
"""

from __future__ import annotations

from typing import Any

import torch
from diffusers.models.attention_processor import Attention, AttnProcessor2_0
from torch import Tensor, nn
from torch.nn import functional

MOST_WEIGHTS = 1 << 24
"""Pictures × heads × queries × keys up to which a layer uses the plain operations: 34 MB in bfloat16."""


def attend(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """softmax(q·kᵀ/√d)·v (Vaswani et al. 2017, equation 1) of (n, heads, tokens, d) tensors, by plain operations."""
    weights = torch.matmul(query * query.shape[-1] ** -0.5, key.transpose(-1, -2)).softmax(-1)
    return torch.matmul(weights, value)


class PlainAttention:
    """A processor for diffusers' attention layers: `attend` in 16 bits where the weights are not too many."""

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
        plain = query.dtype is torch.bfloat16 and query[..., 0].numel() * key.shape[2] <= MOST_WEIGHTS
        mixed = (attend if plain else functional.scaled_dot_product_attention)(query, key, value)
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
