"""Putting a ΔW into a network: for training (`wrap`, `take`) and for use (`applied`)."""

from __future__ import annotations

import contextlib
import difflib
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional

from deltaw import adapters, int8
from deltaw.adapters import lora
from deltaw.delta import Delta, Update
from deltaw.errors import InputError, UsageError


class _LowRankProduct(torch.autograd.Function):
    """y = x·Wᵀ + b + scale·(x·downᵀ)·upᵀ with W frozen, perhaps packed (`int8`), saving x once, in compute precision.

    Plain autograd would keep x once for the base and once, cast, for the adapter. The rank-r product and the factors in
    compute precision are kept too: they are r / in of x, and making them again costs narrow layers a tenth of the adapter.
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, unit: Tensor | None, bias: Tensor | None, down: Tensor, up: Tensor, scale: float
    ) -> Tensor:  # fmt: skip
        flat = x.flatten(0, -2)
        low_down, low_up = down.to(x.dtype), (up * scale).to(x.dtype)
        low = flat @ low_down.t()  # (n, r)
        y = functional.linear(flat, int8.unpack(weight, unit, x.dtype), bias).addmm_(low, low_up.t())
        ctx.save_for_backward(x, weight, unit, low_down, low_up, low)
        ctx.scale, ctx.kind = scale, up.dtype
        return y.view(*x.shape[:-1], -1)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, unit, low_down, low_up, low = ctx.saved_tensors
        flat, g = x.flatten(0, -2), grads[0].flatten(0, -2)
        through = g @ low_up  # (n, r)
        grad_x = None
        if ctx.needs_input_grad[0]:
            grad_x = (g @ int8.unpack(weight, unit, g.dtype)).addmm_(through, low_down).view_as(x)
        grad_up = (g.t() @ low).to(ctx.kind) * ctx.scale
        return grad_x, None, None, None, (through.t() @ flat).to(ctx.kind), grad_up, None


class LowRank(nn.Module):
    """A frozen module with a trained ΔW beside it; `up` and `down` are float32 on the module's device.

    Args:
        base: the module, Linear or Conv2d; its own parameters are left alone.
        tensors: a LoRA's `up (out, r[, 1, 1])`, `down (r, in[, kh, kw])` and `alpha ()`.
    """

    def __init__(self, base: nn.Linear | nn.Conv2d, tensors: Mapping[str, Tensor]):
        super().__init__()
        self.base = base
        self.up = nn.Parameter(tensors["up"].to(base.weight.device))
        self.down = nn.Parameter(tensors["down"].to(base.weight.device))
        self.scale = lora.scale(tensors)


class Faster(Protocol):
    """Another way to compute an adapted layer, where it fits (`joined`)."""

    def fits(self, x: Tensor) -> bool:
        """Whether it computes x (…, in)."""
        ...

    def __call__(self, x: Tensor) -> Tensor:
        """(…, in) -> (…, out)."""
        ...


class LowRankLinear(LowRank):
    """A frozen Linear with `up (out, r)` and `down (r, in)` beside it."""

    joined: Faster | None = None

    def forward(self, x: Tensor) -> Tensor:
        """(…, in) -> (…, out) in the dtype of x."""
        if self.joined is not None and self.joined.fits(x):
            return self.joined(x)
        base = self.base
        unit = base.unit if isinstance(base, int8.Int8Linear) else None
        return _LowRankProduct.apply(x, base.weight, unit, base.bias, self.down, self.up, self.scale)  # type: ignore[no-any-return]


class LowRankConv2d(LowRank):
    """A frozen Conv2d with `down (r, in, kh, kw)`, then `up (out, r, 1, 1)`, beside it."""

    def forward(self, x: Tensor) -> Tensor:
        """(n, in, h, w) -> (n, out, h', w') in the dtype of x."""
        base = self.base
        narrow = functional.conv2d(x, self.down.to(x.dtype), None, base.stride, base.padding, base.dilation)  # type: ignore[arg-type]
        return base(x) + functional.conv2d(narrow, (self.up * self.scale).to(x.dtype))


@dataclass(frozen=True)
class Wrapped:
    """The adapters put into one network, by module path, and the alpha they were made with."""

    modules: Mapping[str, LowRank]
    alpha: float

    def parameters(self) -> dict[str, nn.Parameter]:
        """`PATH.down` and `PATH.up` in the network's order: everything that trains."""
        return {f"{path}.{name}": getattr(m, name) for path, m in self.modules.items() for name in ("down", "up")}


def wrap(model: nn.Module, targets: str, rank: int, alpha: float, generator: torch.Generator) -> Wrapped:
    """Puts a LoRA on every Linear and Conv2d whose module path matches; the output stays unchanged.

    Args:
        model: the network; changed in place, its own weights are not.
        targets: regular expression searched for in each module path.
        rank: r; capped per module by nothing: a rank above min(in, out) is refused.
        alpha: numerator of the scale.
        generator: source of the random `down`; drawn in the network's order, so a seed fixes all.

    Raises:
        UsageError: the expression is invalid or matches no module, or the rank is too large.
    """
    found = _targeted(model, targets)
    modules: dict[str, LowRank] = {}
    for path, module in found.items():
        shape = tuple(module.weight.shape)
        if rank > min(shape[0], module.weight[0].numel()):
            raise UsageError(f"rank {rank} is more than {path} {list(shape)} can hold", where="rank",
                             expected=f"at most {min(shape[0], module.weight[0].numel())}")  # fmt: skip
        tensors = lora.init(shape, rank, alpha, generator)
        kind = LowRankLinear if isinstance(module, nn.Linear) else LowRankConv2d
        modules[path] = kind(module, tensors)  # type: ignore[arg-type]
        int8.put(model, path, modules[path])
    return Wrapped(modules, alpha)


def _targeted(model: nn.Module, targets: str) -> dict[str, nn.Linear | nn.Conv2d]:
    try:
        pattern = re.compile(targets)
    except re.error as error:
        raise UsageError(f"targets is no regular expression: {error}", where=targets) from error
    linear = {p: m for p, m in model.named_modules() if isinstance(m, nn.Linear | nn.Conv2d)}
    found = {path: module for path, module in linear.items() if pattern.search(path)}
    if not found:
        near = difflib.get_close_matches(targets, linear, n=1, cutoff=0.0)
        raise UsageError(
            "targets matches no Linear or Conv2d of the base", where=targets, advice=f"a path is e.g. {near[0]}"
        )
    grouped = [p for p, m in found.items() if isinstance(m, nn.Conv2d) and m.groups != 1]
    if grouped:
        raise UsageError("grouped convolutions cannot take a LoRA", where=grouped[0], advice="narrow --set targets")
    return found


def take(wrapped: Wrapped, family: str, component: str) -> Delta:
    """The trained change as a value; tensors are float32 copies on the CPU."""
    updates = {}
    for path, module in wrapped.modules.items():
        tensors = {"up": module.up, "down": module.down, "alpha": torch.tensor(float(wrapped.alpha))}
        updates[f"{component}.{path}"] = Update("lora", {k: t.detach().cpu().clone() for k, t in tensors.items()})
    return Delta(family, updates)


@contextlib.contextmanager
def applied(networks: Mapping[str, nn.Module], deltas: Sequence[tuple[Delta, float]]) -> Iterator[None]:
    """Within the context every changed module computes with W + Σ strengthᵢ·ΔWᵢ.

    The changes run beside W (LoRAs as one concatenated LoRA, others as a dense ΔW), so W is never
    rounded and needs no restoring: a ΔW below W's precision still counts in bfloat16.

    Args:
        networks: component name ("unet", "text_encoder") to network.
        deltas: changes and their strengths, 0 and negative allowed.

    Raises:
        InputError: a delta changes a component or module that the base lacks, or another shape.
    """
    replaced: list[tuple[nn.Module, str, nn.Module]] = []
    try:
        for path, changes in _by_path(deltas).items():
            parent, name, module = _module(networks, path)
            setattr(parent, name, _changed(module, changes, path))
            replaced.append((parent, name, module))
        yield
    finally:
        for parent, name, module in replaced:
            setattr(parent, name, module)


def _by_path(deltas: Sequence[tuple[Delta, float]]) -> dict[str, list[tuple[Update, float]]]:
    changes: dict[str, list[tuple[Update, float]]] = {}
    for delta, strength in deltas:
        for path, update in delta.updates.items():
            changes.setdefault(path, []).append((update, strength))
    return changes


def _module(networks: Mapping[str, nn.Module], path: str) -> tuple[nn.Module, str, nn.Linear | nn.Conv2d]:
    component, _, inner = path.partition(".")
    try:
        network = networks[component]
        if component.startswith("text_encoder") and not hasattr(network, "text_model"):
            inner = inner.removeprefix("text_model.")  # transformers 5 dropped the level that files have
        parent_path, _, name = inner.rpartition(".")
        parent = network.get_submodule(parent_path)
        module = getattr(parent, name)
    except (KeyError, AttributeError) as error:
        raise InputError("the LoRA changes a module that the base lacks", where=path,
                         advice="check which base the LoRA was made for") from error  # fmt: skip
    if not isinstance(module, nn.Linear | nn.Conv2d):
        raise InputError(f"a change of a {type(module).__name__} cannot be applied", where=path,
                         expected="changes of Linear and Conv2d layers")  # fmt: skip
    return parent, name, module


def _changed(module: nn.Linear | nn.Conv2d, changes: Sequence[tuple[Update, float]], path: str) -> nn.Module:
    weight = module.weight
    shape = tuple(weight.shape)
    try:
        if all(set(update.tensors) <= {"up", "down", "alpha"} for update, _ in changes):
            tensors = _concatenated(changes)
            if (*tensors["up"].shape[:1], *tensors["down"].shape[1:]) != shape:
                raise RuntimeError("shapes differ")
            kind = LowRankLinear if isinstance(module, nn.Linear) else LowRankConv2d
            return kind(module, tensors).requires_grad_(False)  # type: ignore[arg-type]
        total = torch.zeros(shape, device=weight.device)
        for update, strength in changes:
            tensors = {name: tensor.to(weight.device) for name, tensor in update.tensors.items()}
            total += strength * adapters.named(update.algorithm).delta(tensors, shape, _wide(module)).float()
        return _Added(module, total)
    except RuntimeError as error:
        raise InputError(f"the LoRA does not fit the base's weight {list(shape)}", where=path,
                         advice="check which base the LoRA was made for") from error  # fmt: skip


def _wide(module: nn.Linear | nn.Conv2d) -> Tensor:
    """A module's weight in float32."""
    unit = module.unit if isinstance(module, int8.Int8Linear) else None
    return int8.unpack(module.weight.detach(), unit, torch.float32).float()


def _concatenated(changes: Sequence[tuple[Update, float]]) -> dict[str, Tensor]:
    """Several LoRAs of one module as one: [s₁·up₁ s₂·up₂ …]·[down₁; down₂; …] is their weighted sum."""
    ups = [strength * lora.scale(u.tensors) * u.tensors["up"].float() for u, strength in changes]
    return {"up": torch.cat(ups, dim=1), "down": torch.cat([u.tensors["down"].float() for u, _ in changes])}


class _Added(nn.Module):
    """A module with a dense ΔW computed beside it, in the precision of the input."""

    def __init__(self, base: nn.Linear | nn.Conv2d, delta: Tensor):
        super().__init__()
        self.base = base
        self.delta = delta.to(base.weight.dtype) if base.weight.is_floating_point() else delta.bfloat16()

    def forward(self, x: Tensor) -> Tensor:
        base = self.base
        delta = self.delta.to(x.dtype)
        if isinstance(base, nn.Linear):
            return base(x) + functional.linear(x, delta)
        return base(x) + functional.conv2d(x, delta, None, base.stride, base.padding, base.dilation, base.groups)  # type: ignore[arg-type]
