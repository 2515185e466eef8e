"""PEFT's adapters other than LoRA, and what their configurations say that the tensors do not.

| `peft_type` | algorithm | the configuration adds |
| --- | --- | --- |
| LORA | `lora` | alphas (`alphas`), the scale of a `lora_bias` |
| LOHA | `loha` | alphas |
| LOKR | `lokr` | alphas; with both halves whole PEFT still multiplies by alpha / r, the algorithm does not: folded into `w1` |
| OFT | `oft-input` | how many terms of the Neumann series, and COFT's limit |
| IA3 | `scale` | whether a convolution's factors are of its input |
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from deltaw import adapters
from deltaw.adapters import scaling, triangles
from deltaw.families.listing import Shapes
from deltaw.formats import alphas

if TYPE_CHECKING:
    import torch

KINDS = {"LORA": "lora", "LOHA": "loha", "LOKR": "lokr", "OFT": "oft-input", "IA3": "scale"}
"""`peft_type` to algorithm."""

_MOVES_THE_BASE = ("pissa", "olora", "corda", "loftq", "lora_ga")
"""Initialisations that take the adapter's beginning out of the base's weights, so that the file alone is not the change."""

Tensors = Mapping[str, "torch.Tensor"]


def refusal(config: Mapping[str, Any]) -> str:
    """Why an adapter of this configuration cannot be read, or ""."""
    kind = config.get("peft_type", "LORA")
    if not isinstance(kind, str) or kind not in KINDS:
        return f"PEFT's {str(kind)[:40]} is not supported"
    start = config.get("init_lora_weights")
    if isinstance(start, str) and start.lower().startswith(_MOVES_THE_BASE):
        return f"it was begun with {start[:40]}, which also changes the base's weights, so that the file is not the whole change"
    return ""


def canonical(
    algorithm: str, tensors: dict[str, torch.Tensor], config: Mapping[str, Any], path: str, shape: tuple[int, ...]
) -> dict[str, torch.Tensor]:
    """A module's tensors with what the configuration adds to them.

    Raises:
        ValueError: the configuration makes no sense.
    """
    kind = config.get("peft_type", "LORA")
    if KINDS.get(kind) != algorithm:
        raise ValueError(f"the configuration is of {kind}, and {path} holds {algorithm}")
    if algorithm == "oft-input":
        return {**tensors, **_turning(config)}
    if algorithm == "scale" and tensors["l"].ndim > 2 and not _of_the_input(config, path, tensors["l"], shape):
        return {"l": tensors["l"].transpose(0, 1).contiguous()}
    if algorithm == "lokr" and "w1" in tensors and "w2" in tensors:
        return {**tensors, "w1": _times(tensors["w1"], _scale(config, path))}
    if algorithm == "lora" and "bias" in tensors:
        return {**tensors, "bias": _times(tensors["bias"], scaling.by_rank(tensors, tensors["down"].shape[0]))}
    return tensors


def _turning(config: Mapping[str, Any]) -> dict[str, torch.Tensor]:
    import torch

    found = {}
    if config.get("use_cayley_neumann"):
        terms = config.get("num_cayley_neumann_terms", 5)
        if type(terms) is not int or not 1 <= terms <= 100:
            raise ValueError(f"num_cayley_neumann_terms is {terms!r}")
        found["terms"] = torch.tensor(terms)
    if config.get("coft"):
        found["eps"] = torch.tensor(_finite(config.get("eps", 6e-5), "eps"), dtype=torch.float64)
    return found


def _of_the_input(config: Mapping[str, Any], path: str, factors: torch.Tensor, shape: tuple[int, ...]) -> bool:
    n = factors.numel()
    if shape[0] != shape[1]:
        return n == shape[1]
    named = config.get("feedforward_modules") or []
    if not isinstance(named, list) or not all(isinstance(name, str) for name in named):
        raise ValueError("feedforward_modules is no list of names, which a square convolution needs")
    return any(path.endswith(name) for name in named)


def _scale(config: Mapping[str, Any], path: str) -> float:
    import torch

    rank = _finite(alphas.by_pattern(config.get("rank_pattern") or {}, path, config.get("r", 8)), "r")
    alpha = _finite(alphas.by_pattern(config.get("alpha_pattern") or {}, path, config.get("alpha", 8)), "alpha")
    if rank < 1:
        raise ValueError(f"r is {rank:g}")
    return scaling.by_rank({"alpha": torch.tensor(alpha, dtype=torch.float64)}, int(rank))


def _finite(value: Any, name: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) < 1e300:
        raise ValueError(f"{name} {value!r} is not a number")
    return float(value)


def _times(tensor: torch.Tensor, factor: float) -> torch.Tensor:
    """The product in the tensor's own type where that is exact, else in float64."""
    if factor == 1:
        return tensor
    product = tensor.double() * factor
    own = product.to(tensor.dtype)
    return own if own.double().equal(product) else product


def as_kept(algorithm: str, tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """A module's tensors as PEFT's file has them; what goes into the configuration is left out.

    Raises:
        ValueError: PEFT's file cannot hold them.
    """
    if algorithm == "oft-input":
        return {"skew": tensors["skew"]}
    if algorithm == "scale" and tensors["l"].ndim > 2:
        return {"l": tensors["l"].reshape(1, -1, *(1,) * (tensors["l"].ndim - 2))}
    flat = {"loha": ("w1_b", "w2_b"), "lokr": ("w2_b",)}.get(algorithm, ())
    if any(name in tensors and tensors[name].ndim > 2 for name in flat):
        raise ValueError("its factors of convolutions are flat")
    return tensors


def config(algorithm: str, modules: Mapping[str, Tensors], shapes: Shapes) -> dict[str, Any]:
    """The configuration of an adapter that is not LoRA.

    Args:
        algorithm: of all its modules.
        modules: path in the network to tensors.
        shapes: path in the network to the weight's shape.

    Raises:
        ValueError: no configuration gives PEFT's modules these tensors.
    """
    kind = next(kind for kind, ours in KINDS.items() if ours == algorithm)
    targets = {
        "peft_type": kind,
        "target_modules": sorted(alphas.as_pattern(path).removeprefix("^") for path in modules),
    }
    if kind == "IA3":
        inputs = [path for path, tensors in modules.items() if tensors["l"].shape[0] == 1]
        return {**targets, "feedforward_modules": sorted(alphas.as_pattern(path).removeprefix("^") for path in inputs)}
    if kind == "OFT":
        return {**targets, **_turned(modules, shapes)}
    makes = {"use_effective_conv2d": _one({"t2" in t for p, t in modules.items() if len(shapes[p]) > 2 and shapes[p][2:] != (1, 1)},
                                          "Tucker forms of convolutions", False)}  # fmt: skip
    ranks = {
        path: adapters.rank(algorithm, {n: tuple(t.shape) for n, t in own.items()}) for path, own in modules.items()
    }
    if kind == "LOKR":
        makes |= _factoring(modules, shapes, ranks)
        ranks = {path: rank or _rank_of_whole(modules[path]) for path, rank in ranks.items()}
    known = {path: rank for path, rank in ranks.items() if rank}
    if len(known) < len(modules):
        raise ValueError("a module's rank is 0")
    numbers = {path: float(own["alpha"]) if "alpha" in own else float(known[path]) for path, own in modules.items()}
    return {**targets, **makes, **alphas.patterns(known, numbers, "alpha")}


def _one(found: Iterable[Any], what: str, default: Any) -> Any:
    values = set(found) or {default}
    if len(values) > 1:
        raise ValueError(f"an adapter has one kind of {what}, and these modules differ")
    return values.pop()


def _turned(modules: Mapping[str, Tensors], shapes: Shapes) -> dict[str, Any]:
    sizes = {path: triangles.block_size(own["skew"].shape) for path, own in modules.items()}
    shared = {own["skew"].shape[0] * sizes[path] != math.prod(shapes[path][1:]) for path, own in modules.items()}
    terms = _one((int(own["terms"]) if "terms" in own else None for own in modules.values()), "Neumann series", None)
    eps = _one((float(own["eps"]) if "eps" in own else None for own in modules.values()), "limits (eps)", None)
    return {
        "r": 0, "oft_block_size": _one(sizes.values(), "block size", 32), "block_share": _one(shared, "sharing of blocks", False),
        "use_cayley_neumann": terms is not None, "num_cayley_neumann_terms": terms or 5, "coft": eps is not None,
        "eps": 6e-5 if eps is None else eps,
    }  # fmt: skip


def _factoring(modules: Mapping[str, Tensors], shapes: Shapes, ranks: Mapping[str, int | None]) -> dict[str, Any]:
    """The options with which PEFT makes halves of exactly these shapes."""
    first = next(iter(modules.values()))
    w1 = first["w1"].shape if "w1" in first else (first["w1_a"].shape[0], first["w1_b"].shape[1])
    for both in (False, True):
        for factor in (-1, *w1):
            if all(_halves(shapes[path], ranks[path], own, factor, both) for path, own in modules.items()):
                return {"decompose_both": both, "decompose_factor": int(factor)}
    raise ValueError("PEFT makes the halves of these modules in other shapes")


def _halves(shape: tuple[int, ...], rank: int | None, own: Tensors, factor: int, both: bool) -> bool:
    """Whether PEFT would make the tensors of a module in their shapes (`tuners/lokr/layer.py`, `update_layer`)."""
    (a, c), (b, d) = _factored(shape[0], factor), _factored(shape[1], factor)
    if rank is None:
        rank = _rank_of_whole(own)
        if "alpha" in own:
            raise ValueError("an alpha without effect (both halves are whole) would not come back")
    first_whole, second_whole = not (both and rank < max(a, b) / 2), rank >= max(c, d) / 2
    kernel = math.prod(shape[2:])
    wanted: dict[str, tuple[int, ...]] = {"w1": (a, b)} if first_whole else {"w1_a": (a, rank), "w1_b": (rank, b)}
    if second_whole:
        wanted["w2"] = (c, d, *shape[2:])
    elif "t2" in own:
        wanted |= {"t2": (rank, rank, *shape[2:]), "w2_a": (rank, c), "w2_b": (rank, d)}
    else:
        wanted |= {"w2_a": (c, rank), "w2_b": (rank, d * kernel)}
    return {name: tuple(tensor.shape) for name, tensor in own.items() if name != "alpha"} == wanted


def _rank_of_whole(own: Tensors) -> int:
    """A rank at which PEFT keeps both halves whole."""
    return max(1, math.ceil(max(*own["w2"].shape[:2]) / 2))


def _factored(n: int, factor: int) -> tuple[int, int]:
    """PEFT's `factorization`: two factors, near the square root for -1, else the one near `factor`."""
    if factor > 0 and n % factor == 0:
        return factor, n // factor
    most = n if factor == -1 else factor
    small = max(m for m in range(1, math.isqrt(n) + 1) if n % m == 0 and m <= most)
    return small, n // small
