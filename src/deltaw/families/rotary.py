"""FLUX.1's attention, whose queries and keys are normalised and turned in one operation that keeps its result alone.

Between its projections and attention proper diffusers normalises (RMSNorm, Zhang and Sennrich 2019, arXiv 1910.07467), joins the text's and the
picture's tokens, and turns pairs of numbers by an angle that depends on the token's place (Su et al. 2021, arXiv 2104.09864): some fifteen
passes over the memory in each direction. The backward pass keeps what was projected beside what attention reads. Here it keeps the
latter alone, from which the former's direction is found again: a turn can be undone, and a weight divided by.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from diffusers.models.transformers.transformer_flux import FluxAttention, FluxAttnProcessor
from torch import Tensor, nn
from torch.nn import functional

from deltaw import joined
from deltaw.families import attention

MOST_UNLIKE = 32.0
"""How often the smaller weight of a pair of numbers may be contained in the larger: what the result in bfloat16 tells of the smaller number is off
by up to 2⁻⁹ times that, in a small part of the gradient."""


@dataclass(frozen=True)
class _Turn:
    """How queries and keys are normalised and turned.

    Args:
        weights: for each stream of tokens the query's and the key's norm's, (d,).
        eps: of the norms.
        cos, sin: (n_tok, d) of each token's angles, alike for the two numbers of a pair.
        fused: by the kernels.
        by_head: of each head the tokens lie side by side in memory, not of each token the heads.
    """

    weights: Sequence[Sequence[Tensor]]
    eps: float
    cos: Tensor
    sin: Tensor
    fused: bool
    by_head: bool

    def write(self, x: Tensor, out: Sequence[Tensor], which: int, scales: Tensor, begin: int) -> None:
        """Writes what a stream (n, t, 3·h·d) gives into q, k and v (n, n_tok, h, d) and scales (2, n, n_tok, h), from `begin` on."""
        weights = self.weights[which]
        if self.fused:
            from deltaw import rotary_kernels

            rotary_kernels.turn(x.contiguous(), out, weights, self.cos, self.sin, scales, begin, self.eps)
            return
        here = slice(begin, begin + x.shape[1])
        *parts, values = x.unflatten(-1, (3, out[0].shape[2], -1)).unbind(2)
        out[2][:, here] = values
        for i, (part, weight) in enumerate(zip(parts, weights, strict=True)):
            a = part.float()
            scales[i, :, here] = scale = a.square().mean(-1).add_(self.eps).rsqrt_()
            out[i][:, here] = _turned(a * scale[..., None] * weight, self._angles(here))

    def write_back(
        self, grad_x: Tensor, grads: Sequence[Tensor], out: Sequence[Tensor], which: int, scales: Tensor, begin: int
    ) -> None:
        """Writes the gradient to a stream from those to q, k and v; `out` are q and k."""
        weights = self.weights[which]
        if self.fused:
            from deltaw import rotary_kernels

            rotary_kernels.turn_back(grad_x, grads, out, weights, self.cos, self.sin, scales, begin)
            return
        here = slice(begin, begin + grad_x.shape[1])
        back = self._angles(here).conj()
        parts = grad_x.unflatten(-1, (3, grads[0].shape[2], -1))
        parts[:, :, 2] = grads[2][:, here]
        for i, weight in enumerate(weights):
            g, y = grads[i][:, here].float(), out[i][:, here].float()
            shared = (g * y).mean(-1, keepdim=True)  # a turn changes no product
            unscaled = _turned(g, back) * weight - _turned(y, back) / weight * shared
            parts[:, :, i] = unscaled * scales[i, :, here, :, None]

    def _angles(self, here: slice) -> Tensor:
        """Of some tokens as complex numbers of length 1: (t, 1, d/2)."""
        return torch.complex(self.cos[here, ::2], self.sin[here, ::2])[:, None]


def _turned(x: Tensor, angles: Tensor) -> Tensor:
    """x (…, d), float32, whose pairs of numbers are turned."""
    pairs = torch.view_as_complex(x.contiguous().unflatten(-1, (-1, 2)))
    return torch.view_as_real(pairs * angles).flatten(-2)


class _Turned(torch.autograd.Function):
    """Streams of projected tokens (n, t, 3·h·d), in their order -> q, k and v (n, n_tok, h, d)."""

    @staticmethod
    def forward(ctx: Any, turn: _Turn, *streams: Tensor) -> tuple[Tensor, ...]:
        n, n_tok, d = len(streams[0]), sum(x.shape[1] for x in streams), turn.cos.shape[1]
        h = streams[0].shape[2] // (3 * d)
        out = tuple(_empty((n, n_tok, h, d), streams[0], turn) for _ in range(3))
        scales = torch.empty(2, n, n_tok, h, dtype=torch.float32, device=out[0].device)
        begin = 0
        for which, x in enumerate(streams):
            turn.write(x, out, which, scales, begin)
            begin += x.shape[1]
        ctx.save_for_backward(*out[:2], scales)
        ctx.turn, ctx.shapes = turn, [x.shape for x in streams]
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        *out, scales = ctx.saved_tensors
        given = [g.contiguous() for g in grads] if ctx.turn.fused else grads
        found, begin = [], 0
        for which, shape in enumerate(ctx.shapes):
            grad_x = torch.empty(shape, dtype=out[0].dtype, device=out[0].device)
            ctx.turn.write_back(grad_x, given, out, which, scales, begin)
            found.append(grad_x)
            begin += shape[1]
        return None, *found


def _empty(shape: tuple[int, int, int, int], like: Tensor, turn: _Turn) -> Tensor:
    n, n_tok, h, d = shape
    return like.new_empty(n, h, n_tok, d).transpose(1, 2) if turn.by_head else like.new_empty(shape)


class RotaryAttention:
    """A processor for FLUX.1's attention layers.

    Args:
        fused: queries and keys are made by the kernels.
        plain: attention proper is `attention.attend`, not torch's fused kernel.
    """

    def __init__(self, *, fused: bool, plain: bool):
        self.exactly: Any = FluxAttnProcessor()
        self.fused, self.plain = fused, plain

    def __call__(
        self,
        attn: Any,  # a FluxAttention, whose parts differ between the two kinds of block
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        image_rotary_emb: tuple[Tensor, Tensor] | None = None,
    ) -> Any:
        """(n, t, width) -> the same, of both streams where there is a text's."""
        is_exact = hidden_states.dtype is torch.float32  # as where a file is proved
        if is_exact or attention_mask is not None or image_rotary_emb is None:
            return self.exactly(attn, hidden_states, encoder_hidden_states, attention_mask, image_rotary_emb)
        streams = [_projected(attn, hidden_states, ("to_q", "to_k", "to_v"), "to_qkv")]
        weights = [(attn.norm_q.weight, attn.norm_k.weight)]
        if encoder_hidden_states is not None:  # the text's tokens come first
            streams.insert(
                0, _projected(attn, encoder_hidden_states, ("add_q_proj", "add_k_proj", "add_v_proj"), "to_added_qkv")
            )
            weights.insert(0, (attn.norm_added_q.weight, attn.norm_added_k.weight))
        turn = _Turn(weights, attn.norm_q.eps, *image_rotary_emb, self.fused, self.plain)
        made: Sequence[Tensor] = _Turned.apply(turn, *streams)
        query, key, value = (x.transpose(1, 2) for x in made)
        attend = attention.attend if self.plain else functional.scaled_dot_product_attention
        mixed = attend(query, key, value).transpose(1, 2).flatten(2)
        if encoder_hidden_states is None:
            return mixed
        text, picture = mixed.split([encoder_hidden_states.shape[1], hidden_states.shape[1]], 1)
        return attn.to_out[1](attn.to_out[0](picture.contiguous())), attn.to_add_out(text.contiguous())


def _projected(attn: Any, x: Tensor, names: Sequence[str], joint: str) -> Tensor:
    """A stream's Q, K and V side by side: (n, t, 3·h·d)."""
    if attn.fused_projections:
        return getattr(attn, joint)(x)
    return torch.cat([getattr(attn, name)(x) for name in names], -1)


def speed_up(network: nn.Module, device: torch.device, dtype: torch.dtype) -> None:
    """Gives FLUX.1's attention layers `RotaryAttention`, but those whose norms cannot be undone.

    Args:
        network: changed in place.
        device: where it will run, which the meta device cannot tell.
        dtype: that it will compute in.
    """
    layers = [m for m in network.modules() if isinstance(m, FluxAttention) and _is_ordinary(m)]
    if dtype is not torch.bfloat16 or not layers:
        return
    fused = next(network.parameters()).is_cuda and not broken(device)
    for layer in layers:
        layer.set_processor(RotaryAttention(fused=fused, plain=attention.pays(device, dtype)))  # type: ignore[arg-type]  # whatever is called like one is one


def _is_ordinary(attn: Any) -> bool:
    names = ("norm_q", "norm_k", "norm_added_q", "norm_added_k")
    norms = [norm for name in names if (norm := getattr(attn, name, None)) is not None]
    return type(attn.processor) is FluxAttnProcessor and all(map(_can_be_undone, norms))


def _can_be_undone(norm: Any) -> bool:
    """Whether what was normalised can be found again from the turned result: no weight is 0 or far smaller than its pair's other."""
    if norm.weight is None:
        return False
    if norm.weight.is_meta:
        return True  # for a forecast
    pairs = norm.weight.detach().abs().float().view(-1, 2)
    return bool((pairs.amax(1) <= MOST_UNLIKE * pairs.amin(1)).all()) and bool((pairs > 0).all())


@functools.cache
def broken(device: torch.device) -> str:
    """Why the kernels cannot be used on a device, or "" where they can: they are built and compared on few tokens."""
    return joined.tried(device, _wrong)


def _wrong(device: torch.device) -> str:
    """What the kernels get wrong on random numbers, or ""."""
    h, d = 3, 16
    x, text = (torch.randn(2, t, 3 * h * d, dtype=torch.bfloat16, device=device, requires_grad=True) for t in (5, 3))
    weights = [tuple(torch.rand(d, dtype=torch.bfloat16, device=device) + 0.5 for _ in range(2)) for _ in range(2)]
    angles = torch.randn(8, d // 2, device=device).repeat_interleave(2, 1)
    answers = []
    with torch.enable_grad():
        for fused in (False, True):
            made = _Turned.apply(_Turn(weights, 1e-6, angles.cos(), angles.sin(), fused, False), text, x)
            loss = torch.stack([(y.float() * angles.sin()[:, None]).square().sum() for y in made]).sum()
            answers.append([*made, *torch.autograd.grad(loss, [text, x])])
    return joined.compared(answers[1], answers[0])
