"""OFT and BOFT: W' = R·W with R orthogonal, block-diagonal or a butterfly of blocks.

Qiu et al. 2023 (arXiv 2306.07280) and Liu et al. 2023 (arXiv 2311.06243) as LyCORIS keeps them:
`blocks (n, b, b)` for OFT, `(m, n, b, b)` for BOFT, from whose skew part the Cayley transform makes R;
`alpha` is the constraint on the skew part's norm (times the number of outputs), no scale; `rescale (out, 1…)`
multiplies the rows.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from deltaw.adapters import rows
from deltaw.adapters.scaling import computing

if TYPE_CHECKING:
    import torch

NAME = "oft"
TENSORS = ("blocks",)
OPTIONAL = ("rescale",)
SUFFIXES = {"oft_blocks": "blocks", "rescale": "rescale"}
RANKED = ()
NEEDS_BASE = True


def fits(shapes: Mapping[str, tuple[int, ...]], shape: tuple[int, ...]) -> str:
    """Why tensors of these shapes cannot change a weight of `shape`, or "" if they can."""
    blocks = shapes["blocks"]
    if len(blocks) not in (3, 4) or blocks[-1] != blocks[-2]:
        return f"blocks {list(blocks)} are no (n, b, b) or (m, n, b, b)"
    if blocks[-3] * blocks[-1] != shape[0]:
        return f"{blocks[-3]} blocks of {blocks[-1]} do not make the {shape[0]} rows of the base's weight"
    return ""


def init(shape: tuple[int, ...], rank: int, alpha: float, generator: torch.Generator) -> dict[str, torch.Tensor]:
    """Zero blocks (R = I) of the largest size up to `rank` that divides the rows; alpha is the constraint."""
    import torch

    size = max(b for b in range(1, rank + 1) if shape[0] % b == 0)
    return {"blocks": torch.zeros(shape[0] // size, size, size), "alpha": torch.tensor(float(alpha))}


def delta(
    tensors: Mapping[str, torch.Tensor], shape: tuple[int, ...], base: torch.Tensor | None = None
) -> torch.Tensor:
    """R·W − W as a tensor of `shape`, at least float32.

    Raises:
        ValueError: `base` is not given.
    """
    import torch

    if base is None:
        raise ValueError("OFT turns the base's weight, which is not given")
    dtype = computing(tensors["blocks"])
    weight = base.to(dtype).reshape(shape)
    blocks = tensors["blocks"].to(dtype)
    turns = _cayley(blocks, _constraint(tensors, shape[0]))
    if blocks.ndim == 3:
        turned = torch.einsum("knm,kn...->km...", turns, weight.unflatten(0, blocks.shape[:2])).flatten(0, 1)
    else:
        turned = _butterfly(turns, weight)
    if "rescale" in tensors:
        turned = turned * tensors["rescale"].to(dtype).reshape(-1, *(1,) * (len(shape) - 1))
    return turned - weight


def factors(tensors: Mapping[str, torch.Tensor], shape: tuple[int, ...]) -> None:
    """None: it depends on W."""


def cannot_split(shapes: Mapping[str, tuple[int, ...]], n_rows: Sequence[int]) -> str:
    """Why stacked modules of `n_rows` rows cannot be told apart, or ""."""
    blocks = shapes["blocks"]
    if len(blocks) == 4:
        return "the butterfly of a BOFT turns the rows of stacked modules into each other"
    if any(n % blocks[-1] for n in n_rows):
        return f"blocks of {blocks[-1]} rows turn the rows of stacked modules of {list(n_rows)} rows into each other"
    return ""


def split_rows(tensors: rows.Tensors, n_rows: Sequence[int]) -> list[dict[str, torch.Tensor]]:
    """The changes of stacked modules: their blocks and factors of rows.

    Raises:
        ValueError: rows of several modules are turned into each other, or the constraint on all of them is at work.
    """
    if problem := cannot_split({name: tuple(t.shape) for name, t in tensors.items()}, n_rows):
        raise ValueError(problem)
    constraint = _constraint(tensors, sum(n_rows))
    blocks = tensors["blocks"].float()
    if constraint > 0:
        if float((blocks - blocks.mT).norm()) + 1e-8 > constraint:
            raise ValueError("the constraint on the stacked modules is one for all and is at work")
        tensors = {name: t for name, t in tensors.items() if name != "alpha"}  # without effect on all, so on none
    own = {name: t for name, t in tensors.items() if name != "blocks"}
    turns = rows.split({"blocks": tensors["blocks"]}, [n // blocks.shape[-1] for n in n_rows], {"blocks": 0})
    return [{**part, **turn} for part, turn in zip(rows.split(own, n_rows, {"rescale": 0}), turns, strict=True)]


def join_rows(parts: Sequence[rows.Tensors | None], n_rows: Sequence[int]) -> dict[str, torch.Tensor]:
    """One change of the stacked weight.

    Raises:
        ValueError: the modules are constrained one by one, are butterflies, or are not alike.
    """
    present = [part for part in parts if part is not None]
    size = present[0]["blocks"].shape[-1]
    if any(
        part["blocks"].ndim != 3 or part["blocks"].shape[-1] != size or _constraint(part, 1) > 0 for part in present
    ):
        raise ValueError("butterflies, blocks of several sizes and constraints of modules do not join")
    if any(n % size for n in n_rows):
        raise ValueError(f"blocks of {size} rows do not fill a module without a change")
    own = [None if part is None else {name: t for name, t in part.items() if name != "blocks"} for part in parts]
    blocks = [None if part is None else {"blocks": part["blocks"]} for part in parts]
    turns = rows.join(blocks, [n // size for n in n_rows], {"blocks": 0})
    return {**rows.join(own, n_rows, {"rescale": 0}, absent=1.0), **turns}


def _constraint(tensors: rows.Tensors, n_rows: int) -> float:
    return float(tensors["alpha"]) * n_rows if "alpha" in tensors else 0.0


def _cayley(blocks: torch.Tensor, constraint: float) -> torch.Tensor:
    """(I + Q)·(I − Q)⁻¹ of Q = blocks − blocksᵀ, whose norm is limited to `constraint` where that is positive."""
    import torch

    skew = blocks - blocks.mT
    if constraint > 0 and (norm := float(skew.norm()) + 1e-8) > constraint:
        skew = skew * (constraint / norm)
    eye = torch.eye(blocks.shape[-1], dtype=blocks.dtype)
    return (eye + skew) @ torch.linalg.inv(eye - skew)


def _butterfly(turns: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """Applies the m stages; stage i mixes rows that lie 2^i · b/2 apart."""
    import torch

    _, n, b, _ = turns.shape
    rest = weight.shape[1:]
    for i, stage in enumerate(turns):
        stride = 2**i * (b // 2)
        mixed = weight.reshape(-1, 2, stride, *rest).transpose(1, 2).reshape(n, b, *rest)
        mixed = torch.einsum("bij,bj...->bi...", stage, mixed)
        weight = mixed.reshape(-1, stride, 2, *rest).transpose(1, 2).reshape(weight.shape)
    return weight
