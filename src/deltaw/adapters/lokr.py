"""LoKr: ΔW = (alpha / r) · w1 ⊗ w2, each half whole or low-rank (Yeh et al. 2023, arXiv 2309.14859, section 3.2).

With both halves whole there is no rank and the scale is 1, whatever alpha says (LyCORIS `lokr.py`).

A module of stacked ones whose rows begin or end within a block of the product is a window on it: `rows (2,)`, the
product's first row that is meant and the one after the last. No file has that key; it comes of splitting.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from deltaw.adapters import rows
from deltaw.adapters.scaling import by_rank, computing

if TYPE_CHECKING:
    import torch

NAME = "lokr"
TENSORS = ()
_IN_FILES = ("w1", "w1_a", "w1_b", "w2", "w2_a", "w2_b", "t1", "t2")
OPTIONAL = (*_IN_FILES, "rows")
SUFFIXES = {f"lokr_{name}": name for name in _IN_FILES}
RANKED = ("w1_b", "w2_b")
NEEDS_BASE = False
cannot_split = rows.always


def fits(shapes: Mapping[str, tuple[int, ...]], shape: tuple[int, ...]) -> str:
    """Why tensors of these shapes cannot change a weight of `shape`, or "" if they can."""
    first, second = _half_shape(shapes, "1"), _half_shape(shapes, "2")
    if first is None or second is None:
        return "a half of the Kronecker product is missing"
    if isinstance(first, str) or isinstance(second, str):
        return first if isinstance(first, str) else str(second)
    # LyCORIS keeps the second half of a convolution flat, (c, d·kh·kw), or as (c, d, kh, kw): the product is the same
    made = (first[0] * second[0], math.prod(first[1:]) * math.prod(second[1:]))
    n_rows = shape[0] if "rows" in shapes else made[0]  # which rows a window shows is in its numbers
    if (n_rows, made[1]) != (shape[0], math.prod(shape[1:])) or made[0] < shape[0]:
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
    product = torch.kron(first.contiguous(), second.contiguous()).flatten(1)
    if "rows" in tensors:
        begin, end = (int(row) for row in tensors["rows"])
        product = product[begin:end]
    return _scale(tensors) * product.reshape(shape)


def factors(tensors: Mapping[str, torch.Tensor], shape: tuple[int, ...]) -> None:
    """None: a Kronecker product of full halves has no thin factors."""


def split_rows(tensors: rows.Tensors, n_rows: Sequence[int]) -> list[dict[str, torch.Tensor]]:
    """The changes of stacked modules: rows of the first half where they are whole blocks, else windows."""
    import torch

    name, axis, height = _first_rows(tensors)
    if all(n % height == 0 for n in n_rows):
        parts = rows.split(
            {k: t for k, t in tensors.items() if k not in rows.COMMON}, [n // height for n in n_rows], {name: axis}
        )
    else:
        ends = [sum(n_rows[: i + 1]) for i in range(len(n_rows))]
        parts = [{**tensors, "rows": torch.tensor([end - n, end])} for n, end in zip(n_rows, ends, strict=True)]
    common = rows.split({k: t for k, t in tensors.items() if k in rows.COMMON}, n_rows, {})
    return [{**part, **own} for part, own in zip(parts, common, strict=True)]


def join_rows(parts: Sequence[rows.Tensors | None], n_rows: Sequence[int]) -> dict[str, torch.Tensor]:
    """One change of the stacked weight.

    Raises:
        ValueError: the modules do not share the second half, their windows do not follow one another, or they are not alike.
    """
    first = next(part for part in parts if part is not None)
    own = [None if part is None else {k: t for k, t in part.items() if k in rows.COMMON} for part in parts]
    common = rows.join(own, n_rows, {})
    halves = [
        None if part is None else {k: t for k, t in part.items() if k not in (*rows.COMMON, "rows")} for part in parts
    ]
    if "rows" in first:
        windows = [(0, 0) if part is None else tuple(int(row) for row in part["rows"]) for part in parts]
        ends = [sum(n_rows[: i + 1]) for i in range(len(n_rows))]
        if windows != [(end - n, end) for n, end in zip(n_rows, ends, strict=True)]:
            raise ValueError("the modules' windows on the product do not follow one another")
        return {**rows.join(halves, n_rows, {}), **common}
    name, axis, height = _first_rows(first)
    if any(n % height for n in n_rows):
        raise ValueError(f"blocks of {height} rows do not fill a module without a change")
    return {**rows.join(halves, [n // height for n in n_rows], {name: axis}), **common}


def _first_rows(tensors: rows.Tensors) -> tuple[str, int, int]:
    """The tensor that runs along the product's blocks of rows, its axis, and how many rows a block has."""
    second = _half_shape({name: tuple(t.shape) for name, t in tensors.items()}, "2")
    assert isinstance(second, tuple)  # what fits has two halves
    if "w1" in tensors:
        return "w1", 0, second[0]
    return "w1_a", 1 if "t1" in tensors else 0, second[0]


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
