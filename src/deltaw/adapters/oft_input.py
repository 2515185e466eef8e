"""OFT on the input, as PEFT keeps it: W' = W·Rᵀ with R orthogonal and block-diagonal (Qiu et al. 2023, arXiv 2306.07280).

`skew (n, b·(b−1)/2)` holds the upper triangles of the blocks' skew parts Q, row by row; one block for all where n is 1 and b
less than the inputs. R = (I − Q)·(I + Q)⁻¹, or with `terms` the first of the Neumann series of (I + Q)·(I − Q)⁻¹ (the other
sign is PEFT's); `eps` limits a block's norm to eps / √n. (PEFT `tuners/oft/layer.py`.) LyCORIS' OFT turns the output: `oft`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from deltaw.adapters import rows, triangles
from deltaw.adapters.scaling import computing

if TYPE_CHECKING:
    import torch

NAME = "oft-input"
TENSORS = ("skew",)
OPTIONAL = ("terms", "eps")
SUFFIXES: dict[str, str] = {}
RANKED = ()
NEEDS_BASE = True
cannot_split = rows.always


def fits(shapes: Mapping[str, tuple[int, ...]], shape: tuple[int, ...]) -> str:
    """Why tensors of these shapes cannot change a weight of `shape`, or "" if they can."""
    skew, n_in = shapes["skew"], math.prod(shape[1:])
    size = triangles.block_size(skew)
    if not size or (skew[0] * size != n_in and (skew[0] != 1 or n_in % size)):
        return f"triangles {list(skew)} make no blocks for the {n_in} inputs of the base's weight {list(shape)}"
    return ""


def init(shape: tuple[int, ...], rank: int, alpha: float, generator: torch.Generator) -> dict[str, torch.Tensor]:
    """Zero triangles (R = I) of the largest block of 2 to `rank` that divides the inputs, or all of them."""
    import torch

    n_in = math.prod(shape[1:])
    size = max((b for b in range(2, rank + 1) if n_in % b == 0), default=n_in)
    return {"skew": torch.zeros(n_in // size, size * (size - 1) // 2)}


def delta(
    tensors: Mapping[str, torch.Tensor], shape: tuple[int, ...], base: torch.Tensor | None = None
) -> torch.Tensor:
    """W·Rᵀ − W as a tensor of `shape`, at least float32.

    Raises:
        ValueError: `base` is not given.
    """
    import torch

    if base is None:
        raise ValueError("OFT turns the base's weight, which is not given")
    dtype = computing(tensors["skew"])
    weight = base.to(dtype).reshape(shape).flatten(1)
    turns = _turns(tensors, dtype)
    blocks = weight.unflatten(1, (-1, turns.shape[-1]))
    turned = torch.einsum("onc,nrc->onr", blocks, turns.expand(blocks.shape[1], -1, -1)).flatten(1)
    return (turned - weight).reshape(shape)


def _turns(tensors: Mapping[str, torch.Tensor], dtype: torch.dtype) -> torch.Tensor:
    """The blocks of R, `(n, b, b)`."""
    import torch

    skew = tensors["skew"].to(dtype)
    n, size = skew.shape[0], triangles.block_size(skew.shape)
    above, right = torch.triu_indices(size, size, 1)
    q = skew.new_zeros(n, size, size)
    q[:, above, right] = skew
    q = q - q.mT
    if "eps" in tensors:
        limit = float(tensors["eps"]) / math.sqrt(n)
        norms = q.flatten(1).norm(dim=1)[:, None, None]
        q = torch.where(norms <= limit, q, q * (limit / norms))
    eye = torch.eye(size, dtype=dtype)
    if "terms" not in tensors:
        return torch.linalg.solve(eye + q, eye - q, left=False)
    return _neumann(q, eye, int(tensors["terms"]))


def _neumann(q: torch.Tensor, eye: torch.Tensor, n_terms: int) -> torch.Tensor:
    """I + 2·Q + 2·Q² + … + Qⁿ⁻¹ of `n_terms` terms, the last one once, as PEFT sums them."""
    made = eye.expand_as(q).clone()
    if n_terms <= 1:
        return made
    made += 2 * q
    if n_terms == 2:
        return made
    power = q @ q
    made += 2 * power
    for _ in range(3, n_terms - 1):
        power = power @ q
        made += 2 * power
    return made + power @ q


def factors(tensors: Mapping[str, torch.Tensor], shape: tuple[int, ...]) -> None:
    """None: it depends on W."""


def split_rows(tensors: rows.Tensors, n_rows: Sequence[int]) -> list[dict[str, torch.Tensor]]:
    """The changes of stacked modules: their common input is turned for all."""
    return rows.split(tensors, n_rows, {})


def join_rows(parts: Sequence[rows.Tensors | None], n_rows: Sequence[int]) -> dict[str, torch.Tensor]:
    """One change of the stacked weight.

    Raises:
        ValueError: the modules' inputs are turned differently, or not all are.
    """
    return rows.join(parts, n_rows, {}, absent=None)
