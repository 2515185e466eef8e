"""Against dense float64: sums exact, cuts as good as Eckart and Young's optimum, budgets kept."""

from __future__ import annotations

import pytest
import torch

from deltaw.adapters import lowrank
from deltaw.adapters.lowrank import Budget

SHAPES = [(320, 768), (1280, 1280), (640, 2880), (96, 32)]


def term(shape: tuple[int, int], rank: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape[0], rank, generator=generator), torch.randn(rank, shape[1], generator=generator)


@pytest.mark.parametrize("shape", SHAPES)
def test_a_sum_is_exact_with_zero_and_negative_weights(shape: tuple[int, int]) -> None:
    weights, ranks = (0.7, 0.0, -1.3, 2.0), (4, 8, 16, 1)
    terms = [(w, *term(shape, r, i)) for i, (w, r) in enumerate(zip(weights, ranks, strict=True))]
    up, down = lowrank.stacked(terms)
    exact = sum(w * u.double() @ d.double() for w, u, d in terms)
    assert up.shape[1] == 21  # the term of weight 0 is gone, not scaled to 0
    assert (up.double() @ down.double() - exact).norm() <= 1e-6 * exact.norm()


@pytest.mark.parametrize("shape", SHAPES)
def test_cuts_are_the_optimum(shape: tuple[int, int]) -> None:
    up, down = term(shape, 24, 0)
    down = down * torch.logspace(0, -3, 24)[:, None]
    dense = up.double() @ down.double()
    u, s, vt = torch.linalg.svd(dense, full_matrices=False)
    spectrum = lowrank.of_factors(up, down)
    for rank in (1, 5, 20, 24):
        best = (u[:, :rank] * s[:rank]) @ vt[:rank]
        a, b = spectrum.cut(rank)
        ours, optimum = (a.double() @ b.double() - dense).norm(), (best - dense).norm()
        assert ours <= optimum * (1 + 1e-5) + 1e-6 * dense.norm()
        assert abs(spectrum.error(rank) - optimum) <= 1e-5 * dense.norm()
    assert torch.allclose(lowrank.singular_values(up, down)[:24], s[:24], rtol=1e-6, atol=1e-7 * float(s[0]))


def test_more_columns_than_the_matrix_has_dimensions() -> None:
    up, down = term((12, 10), 40, 0)
    spectrum = lowrank.of_factors(up, down)
    a, b = spectrum.cut(10)
    assert spectrum.s.shape == (10,)
    assert (a @ b - up @ down).norm() <= 1e-5 * (up @ down).norm()


def test_a_randomised_spectrum_knows_what_it_leaves_out() -> None:
    generator = torch.Generator().manual_seed(0)
    q1, q2 = (torch.linalg.qr(torch.randn(400, 300, generator=generator, dtype=torch.float64))[0] for _ in range(2))
    s = 0.9 ** torch.arange(300, dtype=torch.float64)
    weight = ((q1 * s) @ q2.mT).float()
    spectrum = lowrank.of_dense(weight, 20, generator)
    a, b = spectrum.cut(20)
    residual, optimum = float((weight.double() - a.double() @ b.double()).norm()), float(s[20:].norm())
    assert residual <= optimum * 1.01
    assert abs(spectrum.error(20) - residual) <= 1e-4 * float(s.norm())


def test_budgets_share_the_ranks_by_energy_a_byte() -> None:
    spectra = {"a": ([4.0, 2.0, 1.0], 0.0), "b": ([3.0, 0.5], 0.0)}
    costs = {"a": 10, "b": 20}
    assert lowrank.choose_ranks(spectra, costs, Budget(rank=2)) == {"a": 2, "b": 2}
    assert lowrank.choose_ranks(spectra, costs, Budget(n_bytes=40)) == {"a": 2, "b": 1}
    assert lowrank.choose_ranks(spectra, costs, Budget(n_bytes=9)) == {"a": 0, "b": 0}
    assert lowrank.choose_ranks(spectra, costs, Budget(energy=16 / 30.25)) == {"a": 1, "b": 0}
    assert lowrank.choose_ranks(spectra, costs, Budget(energy=1.0)) == {"a": 3, "b": 2}
    assert lowrank.choose_ranks(spectra, costs, Budget()) == {"a": 3, "b": 2}
    assert lowrank.choose_ranks({"a": ([0.0], 0.0)}, {"a": 1}, Budget(energy=1.0)) == {"a": 0}


def test_no_more_vectors_than_wanted_are_made_by_either_way() -> None:
    up, down = term((40, 30), 6, 0)
    for columns in (up, torch.cat([up[:, :3], up[:, :3]], 1)):  # the second are dependent, so by Householder
        spectrum = lowrank.Product(columns, down).spectrum(2)
        assert (spectrum.u.shape, spectrum.vt.shape) == ((40, 2), (2, 30))
        exact = torch.linalg.svdvals(columns.double() @ down.double())
        assert torch.allclose(spectrum.s.double()[:3], exact[:3], rtol=1e-6)
