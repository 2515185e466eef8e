"""Queries and keys of a transformer of two streams: joined, normalised and turned in one operation that keeps its result alone.

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
from torch import Tensor

from deltaw import joined

MOST_UNLIKE = 32.0
"""How often the smaller weight of a pair of numbers may be contained in the larger: what the result in bfloat16 tells of the smaller number is off
by up to 2⁻⁹ times that, in a small part of the gradient."""


@dataclass(frozen=True)
class Turn:
    """How queries and keys are made of what was projected.

    Args:
        n_heads: h.
        weights: for each stream of tokens the query's and the key's norm's, (d,) each; None where nothing is normalised.
        eps: of the norms.
        angles: cosine and sine (n_tok, d) of each token's, alike for the two numbers of a pair; None where nothing is turned.
        fused: by the kernels.
        by_head: of each head the tokens lie side by side in memory, not of each token the heads.
    """

    n_heads: int
    weights: Sequence[Sequence[Tensor]] | None
    eps: float
    angles: tuple[Tensor, Tensor] | None
    fused: bool
    by_head: bool

    def __call__(self, *streams: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Streams of projected tokens (n, t, 3·h·d), in their order -> q, k and v (n, n_tok, h, d)."""
        return _Turned.apply(self, *streams)  # type: ignore[no-any-return]

    def write(self, x: Tensor, out: Sequence[Tensor], which: int, scales: Tensor, begin: int) -> None:
        """Writes what a stream gives into q, k and v and scales (2, n, n_tok, h), from `begin` on."""
        weights = self.weights[which] if self.weights else None
        if self.fused:
            from deltaw import rotary_kernels

            rotary_kernels.turn(x.contiguous(), out, weights, self.angles, scales, begin, self.eps)
            return
        here = slice(begin, begin + x.shape[1])
        parts = x.unflatten(-1, (3, self.n_heads, -1)).unbind(2)
        out[2][:, here] = parts[2]
        for i in range(2):
            a = parts[i]
            if weights:
                a = a.float()
                scales[i, :, here] = scale = a.square().mean(-1).add_(self.eps).rsqrt_()
                a = a * scale[..., None] * weights[i]
            out[i][:, here] = self._turned(a, here)

    def write_back(
        self, grad_x: Tensor, grads: Sequence[Tensor], out: Sequence[Tensor], which: int, scales: Tensor, begin: int
    ) -> None:
        """Writes the gradient to a stream from those to q, k and v; `out` are q and k."""
        weights = self.weights[which] if self.weights else None
        if self.fused:
            from deltaw import rotary_kernels

            rotary_kernels.turn_back(grad_x, grads, out, weights, self.angles, scales, begin)
            return
        here = slice(begin, begin + grad_x.shape[1])
        parts = grad_x.unflatten(-1, (3, self.n_heads, -1))
        parts[:, :, 2] = grads[2][:, here]
        for i in range(2):
            g = grads[i][:, here]
            found = self._turned(g, here, back=True)
            if weights:
                y = out[i][:, here].float()
                shared = (g * y).mean(-1, keepdim=True)  # a turn changes no product
                found = found * weights[i] - self._turned(y, here, back=True) / weights[i] * shared
                found = found * scales[i, :, here, :, None]
            parts[:, :, i] = found

    def _turned(self, x: Tensor, here: slice, *, back: bool = False) -> Tensor:
        """x (n, t, h, d) of some tokens, whose pairs of numbers are turned, or turned back, in float32."""
        if self.angles is None:
            return x
        cos, sin = (a[here, ::2] for a in self.angles)
        pairs = torch.view_as_complex(x.float().contiguous().unflatten(-1, (-1, 2)))
        turned = pairs * torch.complex(cos, -sin if back else sin)[:, None]
        return torch.view_as_real(turned).flatten(-2)


class _Turned(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, turn: Turn, *streams: Tensor) -> tuple[Tensor, ...]:
        n, n_tok, h = len(streams[0]), sum(x.shape[1] for x in streams), turn.n_heads
        out = tuple(_empty((n, n_tok, h, streams[0].shape[2] // (3 * h)), streams[0], turn) for _ in range(3))
        scales = torch.empty(2, n, n_tok, h, dtype=torch.float32, device=out[0].device)
        begin = 0
        for which, x in enumerate(streams):
            turn.write(x, out, which, scales, begin)
            begin += x.shape[1]
        if turn.weights:
            ctx.save_for_backward(*out[:2], scales)
        ctx.turn, ctx.shapes = turn, [x.shape for x in streams]
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        given = [g.contiguous() for g in grads] if ctx.turn.fused else grads
        *out, scales = ctx.saved_tensors or (*given[:2], given[0].new_empty(0, dtype=torch.float32))
        found, begin = [], 0
        for which, shape in enumerate(ctx.shapes):
            grad_x = torch.empty(shape, dtype=given[0].dtype, device=given[0].device)
            ctx.turn.write_back(grad_x, given, out, which, scales, begin)
            found.append(grad_x)
            begin += shape[1]
        return None, *found


def _empty(shape: tuple[int, int, int, int], like: Tensor, turn: Turn) -> Tensor:
    n, n_tok, h, d = shape
    return like.new_empty(n, h, n_tok, d).transpose(1, 2) if turn.by_head else like.new_empty(shape)


def can_be_undone(weight: Tensor | None) -> bool:
    """Whether what was normalised can be found again from the turned result: no weight is 0 or far smaller than its pair's other."""
    if weight is None:
        return False
    if weight.is_meta:
        return True  # for a forecast
    pairs = weight.detach().abs().float().view(-1, 2)
    return bool((pairs.amax(1) <= MOST_UNLIKE * pairs.amin(1)).all()) and bool((pairs > 0).all())


@functools.cache
def broken(device: torch.device) -> str:
    """Why the kernels cannot be used on a device, or "" where they can: they are built and compared on few tokens."""
    return joined.tried(device, _wrong)


def _wrong(device: torch.device) -> str:
    """What the kernels get wrong on random numbers, or ""."""
    h, d = 3, 16
    x, text = (torch.randn(2, t, 3 * h * d, dtype=torch.bfloat16, device=device, requires_grad=True) for t in (5, 3))
    weights = [[torch.rand(d, dtype=torch.bfloat16, device=device) + 0.5 for _ in range(2)] for _ in range(2)]
    angle = torch.randn(8, d // 2, device=device).repeat_interleave(2, 1)
    answers: list[list[Tensor]] = []
    with torch.enable_grad():
        for fused in (False, True):
            made = Turn(h, weights, 1e-6, (angle.cos(), angle.sin()), fused, by_head=False)(text, x)
            loss = torch.stack([(y.float() * angle.sin()[:, None]).square().sum() for y in made]).sum()
            answers.append([*made, *torch.autograd.grad(loss, [text, x])])
    return joined.compared(answers[1], answers[0])
