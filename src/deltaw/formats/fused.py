"""Splits a change of a fused weight (q, k and v stacked as rows) into its modules' changes, and joins them.

With one shared `down`, `ΔW = up · down` splits by the rows of `up` and joins by stacking them, exactly and
without a larger rank. Parts with factors of their own join block-diagonally (kohya's `split_qkv`), and such
a block-diagonal `up` splits into its blocks again, so that the rank is not tripled on the way back.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

Tensors = Mapping[str, "torch.Tensor"]

ALGORITHMS = ("lora", "full")
"""Those whose rows can be told apart; the others are refused by name on fused weights."""


def cannot_split(algorithm: str, shapes: Mapping[str, tuple[int, ...]]) -> str:
    """Why a fused update with tensors of these shapes cannot be split, or ""."""
    if algorithm not in ALGORITHMS:
        return f"{algorithm} on fused modules cannot be told apart into the modules"
    if "magnitude" in shapes and shapes["magnitude"][0] == 1:
        return "DoRA norms per input over fused modules cannot be told apart into the modules"
    return ""


def swap_halves(tensors: Tensors) -> dict[str, torch.Tensor]:
    """The same change with the two halves of its rows exchanged; its own inverse."""
    import torch

    return {
        name: torch.cat(tensor.chunk(2)[::-1])
        if name in ("up", "diff", "bias", "magnitude") and tensor.shape[0] > 1
        else tensor
        for name, tensor in tensors.items()
    }


def split(algorithm: str, tensors: Tensors, n_rows: Sequence[int]) -> list[dict[str, torch.Tensor] | None]:
    """The changes of the stacked modules, which have `n_rows` rows each; None for one that is zero.

    A zero part beside others that are not is how a fused dialect says that a module has no change.
    """
    rows = "up" if algorithm == "lora" else "diff"
    stacked = tensors[rows].split(list(n_rows))
    blocks = _blocks([part.flatten(1) for part in stacked]) if algorithm == "lora" and "mid" not in tensors else None
    offset = 0
    found: list[dict[str, torch.Tensor] | None] = []
    for part, n in zip(stacked, n_rows, strict=True):
        own = {name: tensor for name, tensor in tensors.items() if name not in ("up", "diff", "bias", "magnitude")}
        own |= {k: tensors[k][offset : offset + n].clone() for k in ("bias", "magnitude") if k in tensors}
        own[rows] = part.clone()
        if blocks is not None:
            columns = blocks[len(found)]
            own |= {"up": part[:, columns].clone(), "down": tensors["down"][columns].clone()}
            if "alpha" in tensors:  # the scale alpha / r stays
                own["alpha"] = _scaled(tensors["alpha"], columns.stop - columns.start, tensors["down"].shape[0])
        offset += n
        found.append(own if bool(part.any()) else None)
    return found if any(part is not None for part in found) else [
        {**{k: v for k, v in tensors.items() if k != rows}, rows: part.clone()} for part in stacked
    ]  # fmt: skip


def _scaled(alpha: torch.Tensor, rank: int, of_rank: int) -> torch.Tensor:
    return (alpha.double() * rank / of_rank).to(alpha.dtype)


def _blocks(parts: Sequence[torch.Tensor]) -> list[slice] | None:
    """The columns that belong to each part of a block-diagonal `up`, equal in number; None if it is not one.

    kohya's blocks have one rank each, so the columns are cut evenly and everything outside must be zero.
    """
    rank, n = parts[0].shape[1], len(parts)
    if rank % n:
        return None
    width = rank // n
    slices = [slice(i * width, (i + 1) * width) for i in range(n)]
    for part, columns in zip(parts, slices, strict=True):
        if bool(part[:, : columns.start].any()) or bool(part[:, columns.stop :].any()):
            return None
    return slices


def join(algorithm: str, parts: Sequence[Tensors | None], n_rows: Sequence[int]) -> dict[str, torch.Tensor]:
    """One change of the stacked weight from its modules' changes; None is a module without one.

    Raises:
        ValueError: what keeps it from being exact.
    """
    present = [part for part in parts if part is not None]
    if len({frozenset(part) for part in present}) > 1:
        raise ValueError("the modules' changes hold different tensors")
    if algorithm == "full":
        return _stacked(parts, n_rows, ("diff", "bias"))
    if algorithm != "lora":
        raise ValueError(f"{algorithm} of several modules does not join into one of the fused weight")
    first = present[0]
    shared = [name for name in first if name not in ("up", "bias", "magnitude")]
    if all(_same(part[name], first[name]) for part in present for name in shared):
        return {**{name: first[name] for name in shared}, **_stacked(parts, n_rows, ("up", "bias", "magnitude"))}
    return _block_diagonal(parts, n_rows)


def _same(a: torch.Tensor, b: torch.Tensor) -> bool:
    return a is b or (a.dtype == b.dtype and a.shape == b.shape and a.equal(b))


def _stacked(parts: Sequence[Tensors | None], n_rows: Sequence[int], names: Sequence[str]) -> dict[str, torch.Tensor]:
    import torch

    first = next(part for part in parts if part is not None)
    found: dict[str, torch.Tensor] = {}
    for name in names:
        if name in first:
            if name == "magnitude" and None in parts:
                raise ValueError("a DoRA of some of the modules only does not join into one of all")
            like = first[name]
            zero = [like.new_zeros((n, *like.shape[1:])) for n in n_rows]
            found[name] = torch.cat([part[name] if part is not None else zero[i] for i, part in enumerate(parts)])
    return found


def _block_diagonal(parts: Sequence[Tensors | None], n_rows: Sequence[int]) -> dict[str, torch.Tensor]:
    import torch

    first = next(part for part in parts if part is not None)
    if "mid" in first or "magnitude" in first:
        raise ValueError("Tucker factors or DoRA norms of several modules do not join")
    ranks = {part["down"].shape[0] for part in parts if part is not None}
    alphas = {float(part["alpha"]) for part in parts if part is not None and "alpha" in part}
    if len(ranks) > 1 or len(alphas) > 1:
        raise ValueError(f"the modules' ranks {sorted(ranks)} or alphas {sorted(alphas)} differ")
    rank = ranks.pop()
    up = first["up"].new_zeros((sum(n_rows), rank * len(parts), *first["up"].shape[2:]))
    downs, at = [], 0
    for i, (part, n) in enumerate(zip(parts, n_rows, strict=True)):
        if part is not None:
            up[at : at + n, i * rank : (i + 1) * rank] = part["up"]
        downs.append(part["down"] if part is not None else torch.zeros_like(first["down"]))
        at += n
    joined = {"up": up, "down": torch.cat(downs)}
    if "alpha" in first:
        joined["alpha"] = _scaled(first["alpha"], len(parts), 1)
    if "bias" in first:
        joined |= _stacked(parts, n_rows, ("bias",))
    return joined
