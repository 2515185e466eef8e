"""LoHa: ΔW = (alpha / r) · (w1_a·w1_b) ⊙ (w2_a·w2_b) (Yeh et al. 2023, arXiv 2309.14859; FedPara, arXiv 2108.06098).

Its Tucker form for k×k convolutions has `t1, t2 (r, r, kh, kw)`, `w*_a (r, out)` and `w*_b (r, in)`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from deltaw.adapters import rows
from deltaw.adapters.scaling import by_rank, computing

if TYPE_CHECKING:
    import torch

NAME = "loha"
TENSORS = ("w1_a", "w1_b", "w2_a", "w2_b")
OPTIONAL = ("t1", "t2")
SUFFIXES = {f"hada_{name}": name for name in (*TENSORS, *OPTIONAL)}
RANKED = ("w1_b",)
NEEDS_BASE = False
cannot_split = rows.always


def fits(shapes: Mapping[str, tuple[int, ...]], shape: tuple[int, ...]) -> str:
    """Why tensors of these shapes cannot change a weight of `shape`, or "" if they can."""
    if ("t1" in shapes) != ("t2" in shapes):
        return "only one of t1 and t2 is there"
    tucker = "t1" in shapes
    for half in ("w1", "w2"):
        a, b = shapes[f"{half}_a"], shapes[f"{half}_b"]
        if tucker:
            t = shapes[f"t{half[1]}"]
            made, ranks_agree = (a[1], b[1] * math.prod(t[2:])), t[:2] == (b[0], a[0])
        else:
            made, ranks_agree = (a[0], math.prod(b[1:])), a[1:2] == b[:1]
        if not ranks_agree:
            return f"{half}_a {list(a)} and {half}_b {list(b)} do not share a rank"
        if made != (shape[0], math.prod(shape[1:])):
            return f"{half} makes {list(made)}, the base's weight is {list(shape)}"
    return ""


def init(shape: tuple[int, ...], rank: int, alpha: float, generator: torch.Generator) -> dict[str, torch.Tensor]:
    """`w2_a` zero, the others normal, as LyCORIS; a convolution is taken as a matrix (out, in·kh·kw)."""
    import torch

    n_out, n_in = shape[0], math.prod(shape[1:])
    return {
        "w1_a": torch.empty(n_out, rank).normal_(std=0.1, generator=generator),
        "w1_b": torch.empty(rank, n_in).normal_(std=1.0, generator=generator),
        "w2_a": torch.zeros(n_out, rank),
        "w2_b": torch.empty(rank, n_in).normal_(std=1.0, generator=generator),
        "alpha": torch.tensor(float(alpha)),
    }


def delta(
    tensors: Mapping[str, torch.Tensor], shape: tuple[int, ...], base: torch.Tensor | None = None
) -> torch.Tensor:
    """The Hadamard product of the two low-rank matrices as a tensor of `shape`, at least float32."""
    return by_rank(tensors, tensors["w1_b"].shape[0]) * (_half(tensors, "1") * _half(tensors, "2")).reshape(shape)


def factors(tensors: Mapping[str, torch.Tensor], shape: tuple[int, ...]) -> tuple[torch.Tensor, torch.Tensor] | None:
    """ΔW as `up (out, r²)` and `down (r², in·kh·kw)`, exact; None in Tucker form or where that is no saving.

    (A·B) ⊙ (C·D) = (A ∗ C)·(B ∗ D) with ∗ the row-wise and column-wise Khatri-Rao products.
    """
    import torch

    rank = tensors["w1_b"].shape[0] * tensors["w2_b"].shape[0]
    if "t1" in tensors or rank * 2 > min(shape[0], math.prod(shape[1:])):
        return None
    dtype = computing(tensors["w1_a"])
    a, c = tensors["w1_a"].to(dtype), tensors["w2_a"].to(dtype)
    b, d = tensors["w1_b"].to(dtype).flatten(1), tensors["w2_b"].to(dtype).flatten(1)
    up = torch.einsum("or,os->ors", a, c).flatten(1) * by_rank(tensors, tensors["w1_b"].shape[0])
    return up, torch.einsum("ri,si->rsi", b, d).flatten(0, 1)


def split_rows(tensors: rows.Tensors, n_rows: Sequence[int]) -> list[dict[str, torch.Tensor]]:
    """The changes of stacked modules: rows of `w1_a` and `w2_a` (columns in Tucker form), the rest for all."""
    return rows.split(tensors, n_rows, _axes(tensors))


def join_rows(parts: Sequence[rows.Tensors | None], n_rows: Sequence[int]) -> dict[str, torch.Tensor]:
    """One change of the stacked weight, of the same rank.

    Raises:
        ValueError: the modules do not share `w1_b` and `w2_b`, or are not alike.
    """
    return rows.join(parts, n_rows, _axes(next(part for part in parts if part is not None)))


def _axes(tensors: rows.Tensors) -> dict[str, int]:
    axis = 1 if "t1" in tensors else 0
    return {"w1_a": axis, "w2_a": axis}


def _half(tensors: Mapping[str, torch.Tensor], number: str) -> torch.Tensor:
    import torch

    a, b = tensors[f"w{number}_a"], tensors[f"w{number}_b"]
    dtype = computing(a)
    if (t := tensors.get(f"t{number}")) is None:
        return a.to(dtype) @ b.to(dtype).flatten(1)
    return torch.einsum("ijkl,jr,ip->prkl", t.to(dtype), b.to(dtype), a.to(dtype)).flatten(1)
