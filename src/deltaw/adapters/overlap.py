"""How two changes of one weight relate: do they pull the same way, the opposite way, or past each other."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Overlap:
    """Two changes of one weight, each with its merge weight in it.

    Args:
        inner: Frobenius inner product.
        energy_a, energy_b: squared Frobenius norms.
        angle_out, angle_in: the smallest principal angle between their column and row spaces, degrees;
            0 where they share a direction, 90 where they share none.
    """

    inner: float
    energy_a: float
    energy_b: float
    angle_out: float
    angle_in: float

    @property
    def cosine(self) -> float:
        """1: the same change; 0: they do not meddle with each other; -1: they undo each other."""
        size = math.sqrt(self.energy_a * self.energy_b)
        return self.inner / size if size else 0.0


def of_factors(a: tuple[torch.Tensor, torch.Tensor], b: tuple[torch.Tensor, torch.Tensor]) -> Overlap:
    """The overlap of two products, `up (out, k)` and `down (k, in)` each, without the dense matrices.

    Principal angles after Björck & Golub (1973): the cosines are the singular values of QₐᵀQ_b.
    """
    (up_a, down_a), (up_b, down_b) = ((up.double(), down.double()) for up, down in (a, b))
    return Overlap(
        _inner(up_a, down_a, up_b, down_b), _inner(up_a, down_a, up_a, down_a), _inner(up_b, down_b, up_b, down_b),
        _angle(up_a, up_b), _angle(down_a.mT, down_b.mT),
    )  # fmt: skip


def of_dense(a: torch.Tensor, b: torch.Tensor) -> Overlap:
    """The overlap of two dense changes; the angles say nothing there, dense changes share all directions."""
    a, b = a.double().flatten(), b.double().flatten()
    return Overlap(float(a @ b), float(a @ a), float(b @ b), 0.0, 0.0)


def _inner(up_a: torch.Tensor, down_a: torch.Tensor, up_b: torch.Tensor, down_b: torch.Tensor) -> float:
    return float(((up_a.mT @ up_b) * (down_a @ down_b.mT)).sum())


def _angle(a: torch.Tensor, b: torch.Tensor) -> float:
    import torch

    if not (a.any() and b.any()):
        return 90.0
    cosines = torch.linalg.svdvals(torch.linalg.qr(a)[0].mT @ torch.linalg.qr(b)[0])
    return math.degrees(math.acos(min(1.0, float(cosines[0]))))
