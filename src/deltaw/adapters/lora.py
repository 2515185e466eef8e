"""LoRA: ΔW = (alpha / r) · up · down (Hu et al. 2021, arXiv 2106.09685, equation 3).

For a convolution, `down` is the k×k convolution to r channels and `up` the 1×1 one from them. LoCon's
Tucker form puts the k×k convolution between two 1×1 ones: `mid (r, r, kh, kw)`, `down (r, in, 1, 1)`
(LyCORIS, arXiv 2309.14859, section 3.1).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from deltaw.adapters import rows
from deltaw.adapters.scaling import by_rank, computing

if TYPE_CHECKING:
    import torch

NAME = "lora"
TENSORS = ("up", "down")
OPTIONAL = ("mid",)
SUFFIXES = {"lora_up.weight": "up", "lora_down.weight": "down", "lora_mid.weight": "mid"}
RANKED = ("down",)
NEEDS_BASE = False
cannot_split = rows.always


def fits(shapes: Mapping[str, tuple[int, ...]], shape: tuple[int, ...]) -> str:
    """Why tensors of these shapes cannot change a weight of `shape`, or "" if they can."""
    up, down, mid = shapes["up"], shapes["down"], shapes.get("mid")
    if up[1:2] != down[:1]:
        return f"up {list(up)} and down {list(down)} do not share a rank"
    if mid is not None and mid[:2] != (up[1], down[0]):
        return f"mid {list(mid)} does not fit between up {list(up)} and down {list(down)}"
    made = (up[0], down[1], *(mid[2:] if mid is not None else down[2:]))
    if made[:2] != shape[:2] or math.prod(made[2:]) != math.prod(shape[2:]):
        return f"the change is {list(made)}, the base's weight {list(shape)}"
    return ""


def scale(tensors: Mapping[str, torch.Tensor]) -> float:
    """alpha / r of these tensors."""
    return by_rank(tensors, tensors["down"].shape[0])


def init(shape: tuple[int, ...], rank: int, alpha: float, generator: torch.Generator) -> dict[str, torch.Tensor]:
    """`up (out, r[, 1, 1])` zero, `down (r, in[, kh, kw])` Kaiming uniform with a = √5, as PEFT and kohya.

    Args:
        shape: of the base weight, `(out, in)` or `(out, in, kh, kw)`.
        rank: r, at least 1.
        alpha: the numerator of the scale.
        generator: the only source of randomness.
    """
    import torch

    n_out, *rest = shape
    kernel = shape[2:]
    fan_in = math.prod(rest)
    bound = 1 / math.sqrt(fan_in)  # Kaiming with a = √5: gain √(1/3), bound = gain · √(3 / fan_in)
    down = torch.empty(rank, *rest).uniform_(-bound, bound, generator=generator)
    return {"up": torch.zeros(n_out, rank, *(1 for _ in kernel)), "down": down, "alpha": torch.tensor(float(alpha))}


def factors(tensors: Mapping[str, torch.Tensor], shape: tuple[int, ...]) -> tuple[torch.Tensor, torch.Tensor]:
    """ΔW as `scaled up (out, r)` and `down (r, in·kh·kw)` in at least float32; the scale is in `up`."""
    import torch

    dtype = computing(tensors["up"])
    up, down = tensors["up"].to(dtype).flatten(1), tensors["down"].to(dtype)
    if "mid" in tensors:
        down = torch.einsum("rskl,si->rikl", tensors["mid"].to(dtype), down.flatten(1))
    return scale(tensors) * up, down.flatten(1)


def delta(
    tensors: Mapping[str, torch.Tensor], shape: tuple[int, ...], base: torch.Tensor | None = None
) -> torch.Tensor:
    """(alpha / r) · up · down as a tensor of `shape (out, in[, kh, kw])`, at least float32."""
    up, down = factors(tensors, shape)
    return (up @ down).reshape(shape)


def split_rows(tensors: rows.Tensors, n_rows: Sequence[int]) -> list[dict[str, torch.Tensor]]:
    """The changes of stacked modules: rows of `up`, one `down` for all."""
    return rows.split(tensors, n_rows, {"up": 0})


def join_rows(parts: Sequence[rows.Tensors | None], n_rows: Sequence[int]) -> dict[str, torch.Tensor]:
    """One change of the stacked weight, of the same rank.

    Raises:
        ValueError: the modules do not share a `down`, or are not alike.
    """
    return rows.join(parts, n_rows, {"up": 0})
