"""Splits a change of a fused weight (q, k and v stacked as rows) into its modules' changes, and joins them.

Every algorithm cuts its own rows (`split_rows`, `join_rows`). LoRA has a second way: parts with a `down` of their own
join block-diagonally (kohya's `split_qkv`), and such a block-diagonal `up` splits into its blocks again, so that the
rank is not tripled on the way back.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from deltaw import adapters
from deltaw.adapters import rows

if TYPE_CHECKING:
    import torch

Tensors = Mapping[str, "torch.Tensor"]

HEADER = "deltaw.fused"
"""Header key: stem to how its modules were joined, where the tensors alone would be read as something else."""


@dataclass(frozen=True)
class Joined:
    """How modules' changes were joined.

    Args:
        apart: each had factors of its own.
        absent: which of the modules, by position, have no change.
    """

    apart: bool
    absent: tuple[int, ...]


def noted(metadata: Mapping[str, str]) -> dict[str, Joined]:
    """What a file says of its fused stems; nothing where that makes no sense."""
    try:
        found = json.loads(metadata.get(HEADER, "{}"))
    except (ValueError, RecursionError):
        return {}
    joined: dict[str, Joined] = {}
    for stem, entry in found.items() if isinstance(found, dict) else ():
        match entry:
            case [bool(apart), [*absent]] if all(type(i) is int for i in absent):
                joined[stem] = Joined(apart, tuple(absent))
    return joined


def note(joined: Mapping[str, Joined]) -> dict[str, str]:
    """The header entry that `noted` reads; none for nothing."""
    if not joined:
        return {}
    return {HEADER: json.dumps({stem: [how.apart, list(how.absent)] for stem, how in joined.items()})}


def cannot_split(algorithm: str, shapes: Mapping[str, tuple[int, ...]], n_rows: Sequence[int]) -> str:
    """Why a fused update with tensors of these shapes cannot be told apart into modules of `n_rows` rows, or ""."""
    if _norms_per_input(shapes.get("magnitude", ())):
        return "DoRA norms per input run over all the stacked modules and cannot be told apart"
    return adapters.named(algorithm).cannot_split(shapes, n_rows)


def _norms_per_input(shape: Sequence[int]) -> bool:
    return len(shape) > 1 and shape[0] == 1


def swap_halves(algorithm: str, tensors: Tensors, n_rows: int) -> dict[str, torch.Tensor]:
    """The same change with the two halves of its `n_rows` rows exchanged; its own inverse.

    Raises:
        ValueError: it cannot be cut there.
    """
    kept = {name: t for name, t in tensors.items() if name == "magnitude" and _norms_per_input(t.shape)}
    cut = {name: t for name, t in tensors.items() if name not in kept}
    halves = [n_rows // 2, n_rows // 2]
    own = adapters.named(algorithm)
    return {**own.join_rows(own.split_rows(cut, halves)[::-1], halves), **kept}


def split(
    algorithm: str, tensors: Tensors, n_rows: Sequence[int], how: Joined | None = None
) -> list[dict[str, torch.Tensor] | None]:
    """The changes of the stacked modules, which have `n_rows` rows each; None for one that has none.

    Without a note of `how` they were joined, a zero part beside others is a module without a change, and a
    block-diagonal `up` is one factor a module: what fused dialects mean by them.

    Raises:
        ValueError: the parts cannot be told apart.
    """
    blocks = _blocks(tensors["up"], n_rows) if algorithm == "lora" and "mid" not in tensors else None
    if how is not None and not how.apart:
        blocks = None
    parts: list[dict[str, torch.Tensor]] = adapters.named(algorithm).split_rows(tensors, n_rows)
    zero = [_is_zero(part, tensors) for part in parts]
    if blocks is not None:
        parts = [_block(part, columns, tensors) for part, columns in zip(parts, blocks, strict=True)]
    if how is not None:
        absent = set(how.absent)
    elif all(zero) or adapters.needs_base(algorithm, tensors):
        absent = set()
    else:
        absent = {i for i, none in enumerate(zero) if none}
    return [None if i in absent and zero[i] else part for i, part in enumerate(parts)]


def _is_zero(part: Tensors, whole: Tensors) -> bool:
    """The part's own rows are what `rows.join` puts where a module has no change."""
    own = {name: t for name, t in part.items() if name in whole and t is not whole[name]}
    return bool(own) and all(bool((t == 1).all() if name == "rescale" else not t.any()) for name, t in own.items())


def _block(part: Tensors, columns: slice, whole: Tensors) -> dict[str, torch.Tensor]:
    """A part of a block-diagonal change with its own columns only; the scale alpha / r stays."""
    down = whole["down"]
    own = {**part, "up": part["up"][:, columns].clone(), "down": down[columns].clone()}
    if "alpha" in part:
        own["alpha"] = _scaled(part["alpha"], columns.stop - columns.start, down.shape[0])
    return own


def _scaled(alpha: torch.Tensor, rank: int, of_rank: int) -> torch.Tensor:
    return (alpha.double() * rank / of_rank).to(alpha.dtype)


def _blocks(up: torch.Tensor, n_rows: Sequence[int]) -> list[slice] | None:
    """The columns that belong to each part of a block-diagonal `up`, equal in number; None if it is not one.

    kohya's blocks have one rank each, so the columns are cut evenly and everything outside must be zero.
    """
    rank, n = up.shape[1], len(n_rows)
    if rank % n or not rank:
        return None
    width = rank // n
    slices = [slice(i * width, (i + 1) * width) for i in range(n)]
    for part, columns in zip(up.flatten(1).split(list(n_rows)), slices, strict=True):
        if bool(part[:, : columns.start].any()) or bool(part[:, columns.stop :].any()):
            return None
    return slices


def join(
    algorithm: str, parts: Sequence[Tensors | None], n_rows: Sequence[int]
) -> tuple[dict[str, torch.Tensor], Joined | None]:
    """One change of the stacked weight from its modules' changes; None is a module without one.

    Returns:
        Its tensors, and how they were joined where `split` would take them for something else.

    Raises:
        ValueError: what keeps it from being exact.
    """
    present = [part for part in parts if part is not None]
    if len({frozenset(part) for part in present}) > 1:
        raise ValueError("the modules' changes hold different tensors")
    apart = algorithm == "lora" and any(not rows.same(part["down"], present[0]["down"]) for part in present)
    tensors = _block_diagonal(parts, n_rows) if apart else adapters.named(algorithm).join_rows(parts, n_rows)
    if _alike(split(algorithm, tensors, n_rows), parts):
        return tensors, None
    how = Joined(apart, tuple(i for i, part in enumerate(parts) if part is None))
    if not _alike(split(algorithm, tensors, n_rows, how), parts):
        raise ValueError("the modules' changes would not come apart again as they are")
    return tensors, how


def _alike(found: Sequence[Tensors | None], wanted: Sequence[Tensors | None]) -> bool:
    return all(
        (a is None) == (b is None)
        and (a is None or b is None or (set(a) == set(b) and all(rows.same(t, b[name]) for name, t in a.items())))
        for a, b in zip(found, wanted, strict=True)
    )


def _block_diagonal(parts: Sequence[Tensors | None], n_rows: Sequence[int]) -> dict[str, torch.Tensor]:
    import torch

    first = next(part for part in parts if part is not None)
    if "mid" in first or "magnitude" in first:
        raise ValueError("Tucker factors or DoRA norms of several modules do not join")
    ranks = {part["down"].shape[0] for part in parts if part is not None}
    alphas = {float(part["alpha"]) for part in parts if part is not None and "alpha" in part}
    kinds = {(part["up"].dtype, part["down"].dtype) for part in parts if part is not None}
    if len(ranks) > 1 or len(alphas) > 1 or len(kinds) > 1:
        raise ValueError(f"the modules' ranks {sorted(ranks)}, alphas {sorted(alphas)} or types differ")
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
        bias = [None if part is None else {"bias": part["bias"]} for part in parts]
        joined |= rows.join(bias, n_rows, {})
    return joined
