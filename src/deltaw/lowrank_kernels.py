"""The rank-r parts of adapted linear layers as Triton kernels, for NVIDIA GPUs.

A product with a matrix of r columns is far too small for a GPU's matrix libraries: launching it and passing over the
activations again cost more than its arithmetic. Four kernels do what takes a dozen calls, for up to three layers that read the same x
(their downs and ups stacked), following the split of LoRAFusion (arXiv 2510.00206, section 4): the large product stays the library's,
and what passes over the same memory is done together. Sums over tokens are added up atomically in float32, so that two runs may
differ in the last bits.

Shapes: n tokens, g layers of rank r, R = g·r; x (n, in), down (R, in), up (g·out, r), y and its gradient (n, g·out).
"""

# pyright: reportIndexIssue=false
from __future__ import annotations

import torch
import triton  # pyright: ignore[reportMissingImports]  # torch brings it where there are NVIDIA GPUs
from torch import Tensor
from triton import language as tl  # pyright: ignore[reportMissingImports]


@triton.jit
def _narrow(x, down, low, n, n_in, R: tl.constexpr, RP: tl.constexpr, TOKENS: tl.constexpr, WIDTH: tl.constexpr):
    rows = tl.program_id(0) * TOKENS + tl.arange(0, TOKENS)
    ranks = tl.arange(0, RP)
    total = tl.zeros((TOKENS, RP), tl.float32)
    for begin in range(0, n_in, WIDTH):
        columns = begin + tl.arange(0, WIDTH)
        there = columns < n_in
        a = tl.load(x + rows[:, None] * n_in + columns[None, :], mask=(rows[:, None] < n) & there[None, :], other=0.0)
        b = tl.load(
            down + ranks[None, :] * n_in + columns[:, None], mask=(ranks[None, :] < R) & there[:, None], other=0.0
        )
        total = tl.dot(a, b, total)
    seen = (rows[:, None] < n) & (ranks[None, :] < R)
    tl.store(low + rows[:, None] * R + ranks[None, :], total.to(low.dtype.element_ty), mask=seen)


@triton.jit
def _widen(
    y, low, up, n, n_out, scale, G: tl.constexpr, r: tl.constexpr, rP: tl.constexpr, TOKENS: tl.constexpr, WIDTH: tl.constexpr
):  # fmt: skip
    rows = tl.program_id(0) * TOKENS + tl.arange(0, TOKENS)
    n_parts = tl.cdiv(n_out, WIDTH)
    layer = tl.program_id(1) // n_parts
    columns = (tl.program_id(1) % n_parts) * WIDTH + tl.arange(0, WIDTH)
    ranks = tl.arange(0, rP)
    within, there = rows[:, None] < n, columns[None, :] < n_out
    a = tl.load(
        low + rows[:, None] * (G * r) + layer * r + ranks[None, :], mask=within & (ranks[None, :] < r), other=0.0
    )
    b = tl.load(
        up + (layer * n_out + columns[None, :]) * r + ranks[:, None], mask=there & (ranks[:, None] < r), other=0.0
    )
    place = y + rows[:, None] * (G * n_out) + layer * n_out + columns[None, :]
    before = tl.load(place, mask=within & there, other=0.0).to(tl.float32)
    tl.store(place, (before + scale * tl.dot(a, b)).to(y.dtype.element_ty), mask=within & there)


@triton.jit
def _back_through_up(
    grad, low, up, through, grad_up, n, n_out, scale,
    G: tl.constexpr, r: tl.constexpr, rP: tl.constexpr, TOKENS: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    rows = tl.program_id(0) * TOKENS + tl.arange(0, TOKENS)
    n_parts = tl.cdiv(n_out, WIDTH)
    layer = tl.program_id(1) // n_parts
    columns = (tl.program_id(1) % n_parts) * WIDTH + tl.arange(0, WIDTH)
    ranks = tl.arange(0, rP)
    of_token = (rows[:, None] < n) & (ranks[None, :] < r)
    of_column = (columns[:, None] < n_out) & (ranks[None, :] < r)
    token_places = rows[:, None] * (G * r) + layer * r + ranks[None, :]
    column_places = (layer * n_out + columns[:, None]) * r + ranks[None, :]
    given = tl.load(
        grad + rows[:, None] * (G * n_out) + layer * n_out + columns[None, :],
        mask=(rows[:, None] < n) & (columns[None, :] < n_out), other=0.0,
    )  # fmt: skip
    b = tl.load(up + column_places, mask=of_column, other=0.0)
    tl.atomic_add(through + token_places, scale * tl.dot(given, b), mask=of_token, sem="relaxed")
    a = tl.load(low + token_places, mask=of_token, other=0.0)
    tl.atomic_add(grad_up + column_places, scale * tl.dot(tl.trans(given), a), mask=of_column, sem="relaxed")


@triton.jit
def _back_through_down(
    through, x, down, grad_x, grad_down, n, n_in,
    R: tl.constexpr, RP: tl.constexpr, TOKENS: tl.constexpr, WIDTH: tl.constexpr, TO_X: tl.constexpr,
):  # fmt: skip
    rows = tl.program_id(0) * TOKENS + tl.arange(0, TOKENS)
    columns = tl.program_id(1) * WIDTH + tl.arange(0, WIDTH)
    ranks = tl.arange(0, RP)
    seen = (rows[:, None] < n) & (columns[None, :] < n_in)
    of_down = (ranks[:, None] < R) & (columns[None, :] < n_in)
    places = rows[:, None] * n_in + columns[None, :]
    of_token = (rows[:, None] < n) & (ranks[None, :] < R)
    t = tl.load(through + rows[:, None] * R + ranks[None, :], mask=of_token, other=0.0).to(x.dtype.element_ty)
    a = tl.load(x + places, mask=seen, other=0.0)
    sums = tl.dot(tl.trans(t), a)
    tl.atomic_add(grad_down + ranks[:, None] * n_in + columns[None, :], sums, mask=of_down, sem="relaxed")
    if TO_X:
        b = tl.load(down + ranks[:, None] * n_in + columns[None, :], mask=of_down, other=0.0)
        before = tl.load(grad_x + places, mask=seen, other=0.0).to(tl.float32)
        tl.store(grad_x + places, (before + tl.dot(t, b)).to(grad_x.dtype.element_ty), mask=seen)


def narrow(x: Tensor, down: Tensor) -> Tensor:
    """x·downᵀ: (n, in), (R, in) -> (n, R)."""
    low = torch.empty(len(x), len(down), dtype=x.dtype, device=x.device)
    sizes = (len(x), x.shape[1], len(down), _filled(len(down)))
    with torch.cuda.device_of(x):
        _narrow[(_parts(len(x), 16),)](x, down, low, *sizes, 16, 128, num_warps=4, num_stages=4)
    return low


def widen_(y: Tensor, low: Tensor, up: Tensor, scale: float) -> None:
    """Adds scale·low·upᵀ of each layer to its columns of y (n, g·out)."""
    g, n_out, r = _layers(low, up)
    grid = (_parts(len(y), 64), g * _parts(n_out, 128))
    with torch.cuda.device_of(y):
        _widen[grid](y, low, up, len(y), n_out, scale, g, r, _filled(r), 64, 128, num_warps=4)


def back_through_up(grad: Tensor, low: Tensor, up: Tensor, grad_up: Tensor, scale: float) -> Tensor:
    """Adds scale·gradᵀ·low of each layer to `grad_up`, float32; gives scale·grad·up (n, R), float32."""
    g, n_out, r = _layers(low, up)
    through = torch.zeros(low.shape, dtype=torch.float32, device=low.device)
    grid = (_parts(len(grad), 64), g * _parts(n_out, 128))
    with torch.cuda.device_of(grad):
        _back_through_up[grid](
            grad, low, up, through, grad_up, len(grad), n_out, scale, g, r, _filled(r), 64, 128, num_warps=4
        )
    return through


def back_through_down(through: Tensor, x: Tensor, down: Tensor, grad_x: Tensor | None, grad_down: Tensor) -> None:
    """Adds throughᵀ·x to `grad_down`, float32, and through·down to `grad_x`, where there is one."""
    n, n_in = x.shape
    filled = _filled(len(down))
    width = 128 if filled <= 64 else 64
    sizes = (n, n_in, len(down), filled, 64, width, grad_x is not None)
    grid = (_parts(n, 64), _parts(n_in, width))
    with torch.cuda.device_of(x):
        _back_through_down[grid](through, x, down, x if grad_x is None else grad_x, grad_down, *sizes, num_warps=4)


def _layers(low: Tensor, up: Tensor) -> tuple[int, int, int]:
    """Layers, rows of each up, and their rank."""
    r = up.shape[1]
    g = low.shape[1] // r
    return g, len(up) // g, r


def _filled(rank: int) -> int:
    """A rank filled up to what the matrix units take."""
    return max(16, 1 << (rank - 1).bit_length())


def _parts(n: int, size: int) -> int:
    """Pieces of a size that n things take."""
    return -(-n // size)
