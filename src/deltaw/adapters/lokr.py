"""LoKr: ΔW = (alpha / r) · w1 ⊗ w2, each half whole or low-rank (Yeh et al. 2023, arXiv 2309.14859, section 3.2).

With both halves whole there is no rank and the scale is 1, whatever alpha says (LyCORIS `lokr.py`).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING

from deltaw.adapters.scaling import by_rank, computing

if TYPE_CHECKING:
    import torch

NAME = "lokr"
TENSORS = ()
OPTIONAL = ("w1", "w1_a", "w1_b", "w2", "w2_a", "w2_b", "t1", "t2")


def fits(shapes: Mapping[str, tuple[int, ...]], shape: tuple[int, ...]) -> str:
    """Why tensors of these shapes cannot change a weight of `shape`, or "" if they can."""
    first, second = _half_shape(shapes, "1"), _half_shape(shapes, "2")
    if first is None or second is None:
        return "a half of the Kronecker product is missing"
    if isinstance(first, str) or isinstance(second, str):
        return first if isinstance(first, str) else str(second)
    # LyCORIS keeps the second half of a convolution flat, (c, d·kh·kw), or as (c, d, kh, kw): the product is the same
    made = (first[0] * second[0], math.prod(first[1:]) * math.prod(second[1:]))
    if made != (shape[0], math.prod(shape[1:])):
        return f"the product is {list(made)}, the base's weight {list(shape)}"
    return ""


def _half_shape(shapes: Mapping[str, tuple[int, ...]], number: str) -> tuple[int, ...] | str | None:
    if f"w{number}" in shapes:
        whole = shapes[f"w{number}"]
        return whole if len(whole) >= 2 else f"w{number} is {list(whole)}, not a matrix"
    a, b, t = (shapes.get(f"{kind}") for kind in (f"w{number}_a", f"w{number}_b", f"t{number}"))
    if a is None or b is None:
        return None
    ranks_agree = t[:2] == (a[0], b[0]) if t is not None else a[1:2] == b[:1]
    if not ranks_agree:
        return f"w{number}_a {list(a)} and w{number}_b {list(b)} do not share a rank"
    return (a[1], b[1], *t[2:]) if t is not None else (a[0], *b[1:])


def init(shape: tuple[int, ...], rank: int, alpha: float, generator: torch.Generator) -> dict[str, torch.Tensor]:
    """`w1` whole and Kaiming uniform, `w2` low-rank with `w2_b` zero; the halves are split nearest the square root."""
    import torch

    (a, c), (b, d) = _split(shape[0]), _split(shape[1])
    bound = 1 / math.sqrt(b)
    return {
        "w1": torch.empty(a, b).uniform_(-bound, bound, generator=generator),
        "w2_a": torch.empty(c, rank).uniform_(-1 / math.sqrt(rank), 1 / math.sqrt(rank), generator=generator),
        "w2_b": torch.zeros(rank, d, *shape[2:]),
        "alpha": torch.tensor(float(alpha)),
    }


def _split(n: int) -> tuple[int, int]:
    small = max(i for i in range(1, math.isqrt(n) + 1) if n % i == 0)
    return small, n // small


def delta(
    tensors: Mapping[str, torch.Tensor], shape: tuple[int, ...], base: torch.Tensor | None = None
) -> torch.Tensor:
    """The scaled Kronecker product as a tensor of `shape`, at least float32."""
    import torch

    first, second = _half(tensors, "1"), _half(tensors, "2")
    n_dims = max(first.ndim, second.ndim)
    first, second = (half.reshape(*half.shape, *(1,) * (n_dims - half.ndim)) for half in (first, second))
    return _scale(tensors) * torch.kron(first.contiguous(), second.contiguous()).reshape(shape)


def _scale(tensors: Mapping[str, torch.Tensor]) -> float:
    ranks = [tensors[name].shape[0] for name in ("w1_b", "w2_b") if name in tensors]
    return by_rank(tensors, ranks[0]) if ranks else 1.0


def _half(tensors: Mapping[str, torch.Tensor], number: str) -> torch.Tensor:
    import torch

    whole = tensors.get(f"w{number}")
    kind = computing(next(iter(tensors[n] for n in tensors if n.startswith("w"))))
    if whole is not None:
        return whole.to(kind)
    a, b = tensors[f"w{number}_a"].to(kind), tensors[f"w{number}_b"].to(kind)
    if (t := tensors.get(f"t{number}")) is not None:
        return torch.einsum("ijkl,ip,jr->prkl", t.to(kind), a, b)
    return (a @ b.flatten(1)).reshape(a.shape[0], *b.shape[1:])
