"""Adapted linear layers that read the same x as one product, for training on an NVIDIA GPU.

Q, K and V of a self-attention are three products of the same x, each with its own low-rank ΔW beside it: a dozen launches, of which
most pass over the activations once more. Joined they are one product of stacked weights and the kernels of `lowrank_kernels`,
whose gradients go straight into the trained numbers' buffer (`Flat`).
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from deltaw import int8
from deltaw.flat import Flat
from deltaw.inject import LowRankLinear

MOST_RANK = 128
"""Of layers that are joined, all together: what a kernel can hold."""
MOST_NUMBERS = (1 << 31) - 1
"""Of x or of y: the kernels count places in 32 bits."""


class Joined:
    """Adapted layers that read the same x, as one; called it gives their outputs side by side.

    Args:
        members: one to three, which `fit` together; their frozen weights become views of one stacked weight.
        names: paths of the members, whose `PATH.down` and `PATH.up` are in `flat`.
        flat: holds their factors, the downs side by side and the ups side by side (`order`), and a rounded copy.
    """

    def __init__(self, members: Sequence[LowRankLinear], names: Sequence[str], flat: Flat):
        assert flat.rounded is not None
        self.members, self.names = members, tuple(names)
        self.scale, self.dtype = members[0].scale, flat.rounded.dtype
        bases = [m.base for m in members]
        self.weight = _merged([b.weight for b in bases])
        units = [b.unit for b in bases if isinstance(b, int8.Int8Linear)]
        self.unit = torch.cat(units) if units else None
        biases = [b.bias for b in bases if b.bias is not None]
        self.bias = _merged(biases) if biases else None
        downs, ups = ([f"{name}.{kind}" for name in names] for kind in ("down", "up"))
        self.down, self.up = flat.stacked(downs, flat.rounded), flat.stacked(ups, flat.rounded)
        self.grad_down, self.grad_up = flat.stacked(downs, flat.grads), flat.stacked(ups, flat.grads)

    def fits(self, x: Tensor) -> bool:
        """Whether x (…, in) is trained on and not too large; questions and proofs are asked layer by layer, in whatever precision."""
        n = x.numel() // x.shape[-1]
        small = n * max(x.shape[-1], len(self.up)) <= MOST_NUMBERS
        return small and torch.is_grad_enabled() and x.dtype is self.dtype

    def __call__(self, x: Tensor) -> Tensor:
        """(…, in) -> (…, Σ out)."""
        if not self.fits(x):
            return torch.cat([member(x) for member in self.members], -1)
        return _Product.apply(x, self.members[0].down, self)  # type: ignore[no-any-return]


class _Product(torch.autograd.Function):
    """y = x·Wᵀ + b + scale·(x·downᵀ)·upᵀ; a trained number is among the inputs so that y is known to depend on some."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, trained: Tensor, joined: Joined) -> Tensor:  # noqa: ARG004
        from deltaw import lowrank_kernels as kernels

        flat = x.flatten(0, -2).contiguous()
        low = kernels.narrow(flat, joined.down)
        y = functional.linear(flat, int8.unpack(joined.weight, joined.unit, x.dtype), joined.bias)
        kernels.widen_(y, low, joined.up, joined.scale)
        ctx.save_for_backward(flat, low)
        ctx.joined, ctx.shape = joined, x.shape
        return y.view(*x.shape[:-1], -1)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        from deltaw import lowrank_kernels as kernels

        (x, low), joined = ctx.saved_tensors, ctx.joined
        g = grads[0].flatten(0, -2).contiguous()
        through = kernels.back_through_up(g, low, joined.up, joined.grad_up, joined.scale)
        grad_x = g @ int8.unpack(joined.weight, joined.unit, g.dtype) if ctx.needs_input_grad[0] else None
        kernels.back_through_down(through, x, joined.down, grad_x, joined.grad_down)
        return None if grad_x is None else grad_x.view(ctx.shape), None, None


def _merged(parts: Sequence[Tensor]) -> Tensor:
    """Parameters stacked; each becomes a view, so that nothing is held twice."""
    if len(parts) == 1:
        return parts[0].data
    whole = torch.cat([p.data for p in parts])
    for part, view in zip(parts, whole.split([len(p) for p in parts]), strict=True):
        part.data = view
    return whole


def fit(members: Sequence[nn.Module]) -> bool:
    """Whether layers that read the same x can be one: adapted linear ones, alike but for their numbers."""
    if not all(isinstance(m, LowRankLinear) for m in members):
        return False
    kinds = {
        (type(m.base), m.base.weight.shape, m.base.weight.dtype, m.base.bias is None, m.scale, m.up.shape)
        for m in members
        if isinstance(m, LowRankLinear)
    }
    rank = sum(len(m.down) for m in members if isinstance(m, LowRankLinear))
    return len(kinds) == 1 and rank <= MOST_RANK


def order(groups: Sequence[Sequence[str]]) -> list[str]:
    """Names of trained numbers as they have to lie for groups of paths to be joined: of each all downs, then all ups."""
    return [f"{path}.{kind}" for group in groups for kind in ("down", "up") for path in group]


def join(groups: Sequence[Sequence[str]], modules: Mapping[str, nn.Module], flat: Flat) -> list[Joined]:
    """Joins groups of adapted layers, by path; those of one member are called through it from then on."""
    found = []
    for group in groups:
        members = [module for path in group if isinstance(module := modules[path], LowRankLinear)]
        joined = Joined(members, group, flat)
        if len(members) == 1:
            members[0].joined = joined
        found.append(joined)
    return found


@functools.cache
def broken(device: torch.device) -> str:
    """Why the kernels cannot be used on a device, or "" where they can: they are built and compared on a small product."""
    return tried(device, _wrong)


def tried(device: torch.device, wrong: Callable[[torch.device], str]) -> str:
    """Why kernels cannot be used on a device, or "": what `wrong` finds there, or why it cannot run."""
    if device.type != "cuda":
        return "they are for NVIDIA GPUs"
    try:
        return wrong(device)
    except Exception as error:  # noqa: BLE001  # Triton raises whatever its compilers do
        lines = str(error).strip().splitlines() or [type(error).__name__]
        return " … ".join(dict.fromkeys((lines[0][:100], lines[-1].strip()[:200])))  # the place, and the cause


def compared(found: Sequence[Tensor], wanted: Sequence[Tensor]) -> str:
    """By how much results of kernels are off, or "" where it is no more than bfloat16's rounding."""
    pairs = [(a.detach().float(), b.detach().float()) for a, b in zip(found, wanted, strict=True)]
    off = max(float((a - b).norm() / b.norm()) for a, b in pairs)
    return "" if off < 0.03 else f"they are off by {off:.1%}"


def _wrong(device: torch.device) -> str:
    """What the kernels get wrong on a small product of random numbers, or ""."""
    base = nn.Linear(96, 80, dtype=torch.bfloat16, device=device).requires_grad_(False)
    tensors = {"down": torch.randn(4, 96), "up": torch.randn(80, 4), "alpha": torch.tensor(4.0)}
    module = LowRankLinear(base, tensors)
    trained = {"one.down": module.down, "one.up": module.up}
    x = torch.randn(70, 96, dtype=torch.bfloat16, device=device, requires_grad=True)
    with torch.enable_grad():
        y = module(x).float()
        wanted = [y.detach(), *torch.autograd.grad(y.square().sum(), [x, module.down, module.up])]
        flat = Flat(trained, rounded=torch.bfloat16)
        [joined] = join([["one"]], {"one": module}, flat)
        y = joined(x).float()
        found = [y.detach(), *torch.autograd.grad(y.square().sum(), [x]), joined.grad_down, joined.grad_up]
    return compared(found, wanted)
