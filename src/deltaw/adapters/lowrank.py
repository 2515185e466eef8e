"""The algebra of low-rank changes: exact sums, their spectra, and the best approximation of a given size.

A sum of products is a product of stacked factors, so it is exact and never larger than its terms. Its singular
values come from the small core between thin QR factors (Golub & Van Loan, Matrix Computations, 4th ed., 5.2
and 8.6), never from the dense matrix; cutting the core is the optimum of Eckart and Young (1936).
"""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from deltaw.adapters.scaling import computing

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Spectrum:
    """A matrix as u · diag(s) · vt + a rest that was not computed.

    Args:
        u: `(out, n)`, orthonormal columns.
        s: `(k,)`, falling; k ≥ n where only the first n vectors were wanted.
        vt: `(n, in)`, orthonormal rows.
        rest: squared Frobenius norm of what is not in s.
    """

    u: torch.Tensor
    s: torch.Tensor
    vt: torch.Tensor
    rest: float = 0.0

    @property
    def energy(self) -> float:
        """Squared Frobenius norm of the whole matrix."""
        return float(self.s.double().square().sum()) + self.rest

    def error(self, rank: int) -> float:
        """Frobenius norm of what the best approximation of that rank leaves out."""
        return math.sqrt(float(self.s[rank:].double().square().sum()) + self.rest)

    def cut(self, rank: int) -> tuple[torch.Tensor, torch.Tensor]:
        """The best `up (out, rank)` and `down (rank, in)`; both carry √s, so neither overflows a half float first."""
        root = self.s[:rank].sqrt()
        return self.u[:, :rank] * root, root[:, None] * self.vt[:rank]


def stacked(terms: Sequence[tuple[float, torch.Tensor, torch.Tensor]]) -> tuple[torch.Tensor, torch.Tensor]:
    """Σ wᵢ·upᵢ·downᵢ as one `up (out, Σ rᵢ)` and `down (Σ rᵢ, in)`: exact but for the rounding of wᵢ·upᵢ."""
    import torch

    kept = [(w, up, down) for w, up, down in terms if w != 0] or [(0.0, terms[0][1][:, :0], terms[0][2][:0])]
    return torch.cat([w * up for w, up, _ in kept], 1), torch.cat([down for _, _, down in kept], 0)


class Product:
    """up · down in float64, with the Gram matrices of its factors, from which all that is asked of it is computed.

    Args:
        up: `(out, k)`.
        down: `(k, in)`.
    """

    def __init__(self, up: torch.Tensor, down: torch.Tensor):
        self.dtype, self.up, self.down = up.dtype, up.double(), down.double()

    @functools.cached_property
    def grams(self) -> tuple[torch.Tensor, torch.Tensor]:
        """upᵀ·up and down·downᵀ, `(k, k)` each."""
        return self.up.mT @ self.up, self.down @ self.down.mT

    @property
    def norm(self) -> float:
        """Its Frobenius norm: ‖up·down‖² = ⟨upᵀup, down·downᵀ⟩."""
        return math.sqrt(max(0.0, float((self.grams[0] * self.grams[1]).sum())))

    @property
    def size(self) -> float:
        """‖up‖·‖down‖, never less than its norm; what cancels in the product counts here."""
        return math.sqrt(float(self.grams[0].trace()) * float(self.grams[1].trace()))

    def spectrum(self, n_most: int | None = None) -> Spectrum:
        """Its spectrum in the factors' own type, from thin QR factors and the small core between them.

        QR goes by Cholesky of the Gram matrices in float64 (Golub & Van Loan 5.2.7), whose squared condition is harmless
        for factors that were float32; where it is not (dependent columns, more columns than rows), by Householder.

        Args:
            n_most: vectors that are wanted; all singular values come in any case.
        """
        import torch

        few = self.up.shape[1] <= min(self.up.shape[0], self.down.shape[1])
        lower = _cholesky(self.grams[0]) if few else None
        if lower is None:
            u, s, vt = _by_householder(self.up, self.down, n_most)
        else:
            squares, vectors = torch.linalg.eigh(lower.mT @ self.grams[1] @ lower)
            s = squares.clamp_min(0).sqrt().flip(0)
            vectors = vectors.flip(1)[:, :n_most]
            u = self.up @ torch.linalg.solve_triangular(lower.mT, vectors, upper=True)
            vt = (vectors.mT @ lower.mT) @ self.down
            vt /= s[: vectors.shape[1], None].clamp_min(1e-8 * float(s[0]) + 1e-300)
        return Spectrum(u.to(self.dtype), s.to(self.dtype), vt.to(self.dtype))


def of_factors(up: torch.Tensor, down: torch.Tensor, n_most: int | None = None) -> Spectrum:
    """The spectrum of up · down; see `Product.spectrum`."""
    return Product(up, down).spectrum(n_most)


def _cholesky(gram: torch.Tensor) -> torch.Tensor | None:
    """L of upᵀup = L·Lᵀ in float64; None where the columns of up are too nearly dependent for it."""
    import torch

    lower, failed = torch.linalg.cholesky_ex(gram)
    diagonal = lower.diagonal()
    dependent = int(failed) or not diagonal.numel() or float(diagonal.min()) < 1e-6 * float(diagonal.max())
    return None if dependent else lower


def _by_householder(
    up: torch.Tensor, down: torch.Tensor, n_most: int | None
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    import torch

    q_up, r_up = torch.linalg.qr(up)
    q_down, r_down = torch.linalg.qr(down.mT)
    u, s, vt = torch.linalg.svd(r_up @ r_down.mT, full_matrices=False)
    return q_up @ u[:, :n_most], s, vt[:n_most] @ q_down.mT


def singular_values(up: torch.Tensor, down: torch.Tensor) -> torch.Tensor:
    """The singular values of up · down alone, falling, `(min(out, k, in),)` in float64.

    They are the square roots of the eigenvalues of (upᵀup)·(down·downᵀ), taken in float64, where squaring
    costs nothing that float32 factors hold.
    """
    import torch

    gram_up, gram_down = Product(up, down).grams
    values, vectors = torch.linalg.eigh(gram_up)
    root = vectors * values.clamp_min(0).sqrt()
    core = root.mT @ gram_down @ root
    return torch.linalg.eigvalsh(core).clamp_min(0).sqrt().flip(0)[: min(*up.shape, down.shape[1])]


def of_dense(weight: torch.Tensor, n_most: int, generator: torch.Generator, n_passes: int = 2) -> Spectrum:
    """The leading `n_most` singular triplets of a dense `(out, in)` matrix, and exactly how much is left out.

    Randomised subspace iteration (Halko, Martinsson, Tropp 2011, arXiv 0909.4061, algorithms 4.4 and 5.1) where
    that is cheaper than the whole SVD. The rest is the matrix' norm less the found part's, both measured.
    """
    import torch

    weight = weight.to(computing(weight))
    n_columns = n_most + max(8, n_most // 2)
    if 3 * n_columns >= min(weight.shape):
        u, s, vt = torch.linalg.svd(weight, full_matrices=False)
        return Spectrum(u[:, :n_most], s[:n_most], vt[:n_most], float(s[n_most:].double().square().sum()))
    basis = torch.linalg.qr(weight @ torch.randn(weight.shape[1], n_columns, generator=generator, dtype=weight.dtype))[
        0
    ]
    for _ in range(n_passes):
        basis = torch.linalg.qr(weight.mT @ basis)[0]
        basis = torch.linalg.qr(weight @ basis)[0]
    small = basis.mT @ weight
    u, s, vt = torch.linalg.svd(small, full_matrices=False)
    kept = float(s[:n_most].double().square().sum())
    energy = float(torch.linalg.vector_norm(weight)) ** 2
    if energy - kept < 1e-3 * energy:  # the difference of nearly equal numbers wants more digits than float32's sum has
        energy = energy_of(weight)
    rest = energy - kept
    return Spectrum(basis @ u[:, :n_most], s[:n_most], vt[:n_most], max(rest, 0.0))


def energy_of(dense: torch.Tensor) -> float:
    """The squared Frobenius norm in float64, without a copy of the whole in float64."""
    import torch

    blocks = dense.flatten().split(1 << 18)
    return math.fsum(float(torch.linalg.vector_norm(block, dtype=torch.float64)) ** 2 for block in blocks)


@dataclass(frozen=True)
class Budget:
    """How much of a change to keep; at most one is set, and none keeps all of it.

    Args:
        rank: the same rank everywhere.
        energy: share of the squared Frobenius norm over all modules, in (0, 1].
        n_bytes: of all factors together.
    """

    rank: int | None = None
    energy: float | None = None
    n_bytes: int | None = None

    @property
    def is_set(self) -> bool:
        """Whether anything is to be cut."""
        return (self.rank, self.energy, self.n_bytes) != (None, None, None)


def choose_ranks(
    spectra: Mapping[str, tuple[Sequence[float], float]], costs: Mapping[str, int], budget: Budget, overheads: int = 0
) -> dict[str, int]:
    """A rank for each module under one budget for all: the most energy for the bytes.

    Ranks are taken in the order of their energy a byte. As singular values fall, that order never takes a
    module's later rank before an earlier one, so the choice is optimal up to the last rank taken.

    Args:
        spectra: module to its singular values, falling, and the squared norm left out of them.
        costs: module to the bytes of one rank.
        budget: what to keep.
        overheads: bytes that a module costs once, whatever its rank.
    """
    if budget.rank is not None:
        return {path: min(budget.rank, len(values)) for path, (values, _) in spectra.items()}
    steps = sorted(
        (
            (value * value / costs[path], i, path)
            for path, (values, _) in spectra.items()
            for i, value in enumerate(values)
        ),
        key=lambda step: (-step[0], step[1], step[2]),
    )
    if budget.n_bytes is None:
        return _by_energy(spectra, costs, steps, 1.0 if budget.energy is None else budget.energy)
    chosen = dict.fromkeys(spectra, 0)
    room = budget.n_bytes
    for density, _, path in steps:
        price = costs[path] + (overheads if chosen[path] == 0 else 0)
        if density > 0 and price <= room:
            chosen[path] += 1
            room -= price
    return chosen


def _by_energy(
    spectra: Mapping[str, tuple[Sequence[float], float]], costs: Mapping[str, int],
    steps: Sequence[tuple[float, int, str]], share: float,
) -> dict[str, int]:  # fmt: skip
    total = math.fsum(value * value for values, _ in spectra.values() for value in values)
    total += math.fsum(rest for _, rest in spectra.values())
    chosen = dict.fromkeys(spectra, 0)
    kept = 0.0
    for density, _, path in steps:
        if kept >= share * total * (1 - 1e-12) or density <= 0:
            break
        chosen[path] += 1
        kept += density * costs[path]
    return chosen
