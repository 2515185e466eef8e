"""Attention of transformers of a picture's and a text's tokens (FLUX.1, Stable Diffusion 3), whose queries and keys are made by `rotary`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from diffusers.models.attention_processor import Attention, JointAttnProcessor2_0
from diffusers.models.normalization import RMSNorm
from diffusers.models.transformers.transformer_flux import FluxAttention, FluxAttnProcessor
from torch import Tensor, nn
from torch.nn import functional

from deltaw.families import attention, rotary

PICTURE, TEXT = ("to_q", "to_k", "to_v"), ("add_q_proj", "add_k_proj", "add_v_proj")
"""Names of the projections of a stream's Q, K and V, as diffusers has them."""


@dataclass(frozen=True)
class _Attention:
    """What the two processors share.

    Args:
        fused: queries and keys are made by the kernels.
        plain: attention proper is `attention.attend`, not torch's fused kernel.
    """

    fused: bool
    plain: bool

    def mix(
        self, attn: Any, streams: Sequence[Tensor], norms: Sequence[Sequence[Any]], angles: tuple[Tensor, Tensor] | None
    ) -> Tensor:
        """Streams of projected tokens (n, t, 3·width), in their order -> what attention makes of them, (n, Σt, width)."""
        is_normed = norms[0][0] is not None
        weights = [[norm.weight for norm in pair] for pair in norms] if is_normed else None
        eps = norms[0][0].eps if is_normed else 0.0
        made = rotary.Turn(attn.heads, weights, eps, angles, self.fused, self.plain)(*streams)
        query, key, value = (x.transpose(1, 2) for x in made)
        attend = attention.attend if self.plain else functional.scaled_dot_product_attention
        return attend(query, key, value).transpose(1, 2).flatten(2)


@dataclass(frozen=True)
class FluxStreams(_Attention):
    """A processor for FLUX.1's attention layers; the text's tokens come first."""

    exactly: Any = field(default_factory=FluxAttnProcessor)

    def __call__(
        self,
        attn: Any,  # a FluxAttention, whose parts differ between the two kinds of block
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        image_rotary_emb: tuple[Tensor, Tensor] | None = None,
    ) -> Any:
        """(n, t, width) -> the same, of both streams where there is a text's."""
        if not _is_usual(hidden_states, attention_mask):
            return self.exactly(attn, hidden_states, encoder_hidden_states, attention_mask, image_rotary_emb)
        streams, norms = [_projected(attn, hidden_states, PICTURE, "to_qkv")], [(attn.norm_q, attn.norm_k)]
        if encoder_hidden_states is None:
            return self.mix(attn, streams, norms, image_rotary_emb)
        streams.insert(0, _projected(attn, encoder_hidden_states, TEXT, "to_added_qkv"))
        norms.insert(0, (attn.norm_added_q, attn.norm_added_k))
        mixed = self.mix(attn, streams, norms, image_rotary_emb)
        text, picture = mixed.split([encoder_hidden_states.shape[1], hidden_states.shape[1]], 1)
        return attn.to_out[1](attn.to_out[0](picture.contiguous())), attn.to_add_out(text.contiguous())


@dataclass(frozen=True)
class JointStreams(_Attention):
    """A processor for Stable Diffusion 3's attention layers; the picture's tokens come first, and nothing is turned."""

    exactly: Any = field(default_factory=JointAttnProcessor2_0)

    def __call__(
        self,
        attn: Any,  # an Attention, whose parts diffusers declares as perhaps missing
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
    ) -> Any:
        """(n, t, width) -> the same, of both streams where there is a text's."""
        if not _is_usual(hidden_states, attention_mask):
            return self.exactly(attn, hidden_states, encoder_hidden_states, attention_mask)
        streams, norms = [_projected(attn, hidden_states, PICTURE, "to_qkv")], [(attn.norm_q, attn.norm_k)]
        if encoder_hidden_states is None:
            return attn.to_out[1](attn.to_out[0](self.mix(attn, streams, norms, None)))
        streams.append(_projected(attn, encoder_hidden_states, TEXT, "to_added_qkv"))
        norms.append((attn.norm_added_q, attn.norm_added_k))
        mixed = self.mix(attn, streams, norms, None)
        picture, text = mixed.split([hidden_states.shape[1], encoder_hidden_states.shape[1]], 1)
        if not attn.context_pre_only:
            text = attn.to_add_out(text.contiguous())
        return attn.to_out[1](attn.to_out[0](picture.contiguous())), text


def _is_usual(x: Tensor, mask: Tensor | None) -> bool:
    """Whether nothing is hidden, and the layer does not compute in float32, as where a file is proved."""
    return x.dtype is not torch.float32 and mask is None


def _projected(attn: Any, x: Tensor, names: Sequence[str], joint: str) -> Tensor:
    """A stream's Q, K and V side by side: (n, t, 3·h·d)."""
    if attn.fused_projections:
        return getattr(attn, joint)(x)
    return torch.cat([getattr(attn, name)(x) for name in names], -1)


def speed_up(network: nn.Module, device: torch.device, dtype: torch.dtype) -> None:
    """Gives the attention layers of FLUX.1 and Stable Diffusion 3 these processors, but those whose norms cannot be undone.

    Args:
        network: changed in place.
        device: where it will run, which the meta device cannot tell.
        dtype: that it will compute in.
    """
    if dtype is not torch.bfloat16:  # before the norms are looked at, each of which a GPU is asked for
        return
    layers = [m for m in network.modules() if isinstance(m, FluxAttention | Attention) and _is_ordinary(m)]
    if not layers:
        return
    fused = next(network.parameters()).is_cuda and not rotary.broken(device)
    for layer in layers:
        kind = FluxStreams if isinstance(layer, FluxAttention) else JointStreams
        made: Any = kind(fused and _fits_kernels(layer), attention.pays(device, dtype))
        layer.set_processor(made)


def _is_ordinary(attn: Any) -> bool:
    if type(attn.processor) not in (FluxAttnProcessor, JointAttnProcessor2_0):
        return False
    names = ("norm_q", "norm_k", *(("norm_added_q", "norm_added_k") if attn.added_kv_proj_dim is not None else ()))
    norms = [getattr(attn, name) for name in names]
    if all(norm is None for norm in norms):
        return True
    return all(isinstance(norm, nn.RMSNorm | RMSNorm) and rotary.can_be_undone(norm.weight) for norm in norms)


def _fits_kernels(attn: Any) -> bool:
    """Whether a head's width is a power of two, as a kernel's block has to be."""
    width = attn.to_q.out_features // attn.heads
    return width.bit_count() == 1
