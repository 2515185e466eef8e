"""Joined, normalised and turned queries and keys, and their gradients, as two Triton kernels for NVIDIA GPUs.

Each passes over the memory once, where torch passes some fifteen times (Su et al. 2021, arXiv 2104.09864; Zhang and Sennrich 2019,
arXiv 1910.07467).

Shapes: n pictures, t of all T tokens, h heads of d numbers; x (n, t, 3·h·d), the tokens' Q, K and V side by side; q, k and v
(n, T, h, d), into which the tokens are written from `begin` on; cos and sin (T, d), alike for the two numbers of a pair; scales
(2, n, T, h), 1 / root mean square of the queries and of the keys. NORMED and TURNED say which of the two is done.
"""

# pyright: reportIndexIssue=false
from __future__ import annotations

from collections.abc import Sequence

import torch
import triton  # pyright: ignore[reportMissingImports]  # torch brings it where there are NVIDIA GPUs
from torch import Tensor
from triton import language as tl  # pyright: ignore[reportMissingImports]


@triton.jit
def _turn(
    x, q, k, v, w_q, w_k, cos, sin, scales, n, t, n_tok, begin, eps,
    H: tl.constexpr, HP: tl.constexpr, D: tl.constexpr, NORMED: tl.constexpr, TURNED: tl.constexpr,
):  # fmt: skip
    row, kind = tl.program_id(0).to(tl.int64), tl.program_id(1)
    heads, columns = tl.arange(0, HP), tl.arange(0, D)
    there = (heads[:, None] < H) & (columns[None, :] < D)
    places = heads[:, None] * D + columns[None, :]
    token = begin + row % t
    to = row // t * n_tok + token
    given = tl.load(x + (row * 3 + kind) * H * D + places, mask=there, other=0.0)
    if kind == 2:
        tl.store(v + to * H * D + places, given, mask=there)
    else:
        a = given.to(tl.float32)
        if NORMED:
            scale = 1.0 / tl.sqrt(tl.sum(a * a, 1) / D + eps)
            tl.store(scales + (kind * n * n_tok + to) * H + heads, scale, mask=heads < H)
            if kind == 0:  # noqa: SIM108  # Triton's compiler wants a branch
                w = tl.load(w_q + columns).to(tl.float32)
            else:
                w = tl.load(w_k + columns).to(tl.float32)
            a = a * scale[:, None] * w[None, :]
        if TURNED:
            pairs = tl.arange(0, D // 2)
            c = tl.load(cos + token * D + 2 * pairs)[None, :]
            s = tl.load(sin + token * D + 2 * pairs)[None, :]
            one, two = tl.split(tl.reshape(a, (HP, D // 2, 2)))
            a = tl.reshape(tl.join(one * c - two * s, two * c + one * s), (HP, D))
        y = a.to(q.dtype.element_ty)
        if kind == 0:
            tl.store(q + to * H * D + places, y, mask=there)
        else:
            tl.store(k + to * H * D + places, y, mask=there)


@triton.jit
def _turn_back(
    grad_x, grad_q, grad_k, grad_v, q, k, w_q, w_k, cos, sin, scales, n, t, n_tok, begin,
    H: tl.constexpr, HP: tl.constexpr, D: tl.constexpr, NORMED: tl.constexpr, TURNED: tl.constexpr,
):  # fmt: skip
    row, kind = tl.program_id(0).to(tl.int64), tl.program_id(1)
    heads, columns = tl.arange(0, HP), tl.arange(0, D)
    there = (heads[:, None] < H) & (columns[None, :] < D)
    places = heads[:, None] * D + columns[None, :]
    token = begin + row % t
    of = row // t * n_tok + token
    out = grad_x + (row * 3 + kind) * H * D + places
    if kind == 2:
        tl.store(out, tl.load(grad_v + of * H * D + places, mask=there, other=0.0), mask=there)
    else:
        if kind == 0:
            g = tl.load(grad_q + of * H * D + places, mask=there, other=0.0).to(tl.float32)
            y = tl.load(q + of * H * D + places, mask=there, other=0.0).to(tl.float32)
        else:
            g = tl.load(grad_k + of * H * D + places, mask=there, other=0.0).to(tl.float32)
            y = tl.load(k + of * H * D + places, mask=there, other=0.0).to(tl.float32)
        shared = tl.sum(g * y, 1) / D  # a turn changes no product
        if TURNED:
            pairs = tl.arange(0, D // 2)
            c = tl.load(cos + token * D + 2 * pairs)[None, :]
            s = tl.load(sin + token * D + 2 * pairs)[None, :]
            one, two = tl.split(tl.reshape(g, (HP, D // 2, 2)))
            g = tl.reshape(tl.join(one * c + two * s, two * c - one * s), (HP, D))
            one, two = tl.split(tl.reshape(y, (HP, D // 2, 2)))
            y = tl.reshape(tl.join(one * c + two * s, two * c - one * s), (HP, D))
        if NORMED:
            if kind == 0:  # noqa: SIM108  # Triton's compiler wants a branch
                w = tl.load(w_q + columns).to(tl.float32)
            else:
                w = tl.load(w_k + columns).to(tl.float32)
            scale = tl.load(scales + (kind * n * n_tok + of) * H + heads, mask=heads < H, other=0.0)
            g = scale[:, None] * (w[None, :] * g - shared[:, None] * y / w[None, :])
        tl.store(out, g.to(grad_x.dtype.element_ty), mask=there)


Pair = Sequence[Tensor] | None


def turn(x: Tensor, out: Sequence[Tensor], weights: Pair, angles: Pair, scales: Tensor, begin: int, eps: float) -> None:
    """Writes the tokens of x into q, k and v (`out`) from `begin` on.

    Queries and keys are normalised and weighted (d,), which writes `scales`, where there are weights, and turned where there are angles.
    """
    n, t = x.shape[:2]
    n_tok, h, d = out[0].shape[1:]
    read = (x, *out, *(weights or (x, x)), *(angles or (scales, scales)))
    sizes = (n, t, n_tok, begin, eps, h, triton.next_power_of_2(h), d, weights is not None, angles is not None)
    with torch.cuda.device_of(x):
        _turn[(n * t, 3)](*read, scales, *sizes, num_warps=8)


def turn_back(
    grad_x: Tensor,
    grads: Sequence[Tensor],
    out: Sequence[Tensor],
    weights: Pair,
    angles: Pair,
    scales: Tensor,
    begin: int,
) -> None:
    """Writes the gradient to x from those to q, k and v (`grads`); of what `turn` made q and k are read."""
    n, t = grad_x.shape[:2]
    n_tok, h, d = grads[0].shape[1:]
    read = (grad_x, *grads, *out, *(weights or (grad_x, grad_x)), *(angles or (scales, scales)))
    sizes = (n, t, n_tok, begin, h, triton.next_power_of_2(h), d, weights is not None, angles is not None)
    with torch.cuda.device_of(grad_x):
        _turn_back[(n * t, 3)](*read, scales, *sizes, num_warps=8)
