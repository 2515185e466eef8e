"""Sums of changes as values: Σ wᵢ·ΔWᵢ per module, exact, or under a rule for conflicts."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING

from deltaw import adapters
from deltaw.adapters import conflict, lowrank, overlap
from deltaw.adapters.lowrank import Spectrum
from deltaw.adapters.overlap import Overlap
from deltaw.delta import Delta, Update

if TYPE_CHECKING:
    import torch

Weigh = Callable[[str], float]
"""A module's path to the weight of a change there."""
Weights = Callable[[str], "torch.Tensor"]
"""A module's path to the base's weight."""


@dataclass(frozen=True)
class Term:
    """A change with its weight, which may differ from module to module."""

    delta: Delta
    weigh: Weigh


@dataclass(frozen=True)
class Sum:
    """A module's sum: thin factors where every term has them, else dense; and the sum of the bias changes.

    Args:
        shape: of the weight.
        factors: `up (out, k)`, `down (k, in·kh·kw)`.
        dense: of `shape`; None where `factors` say all.
        bias: `(out,)` or None.
    """

    shape: tuple[int, ...]
    factors: tuple[torch.Tensor, torch.Tensor] | None
    dense: torch.Tensor | None
    bias: torch.Tensor | None

    @functools.cached_property
    def product(self) -> lowrank.Product | None:
        """The factors in float64, made once for all that is computed of them."""
        return None if self.factors is None else lowrank.Product(*self.factors)

    def whole(self) -> torch.Tensor:
        """The dense sum of `shape`."""
        import torch

        if self.dense is not None:
            return self.dense
        return (self.factors[0] @ self.factors[1]).reshape(self.shape) if self.factors else torch.zeros(self.shape)

    def spectrum(self, n_most: int | None, generator: torch.Generator) -> Spectrum:
        """Its singular values and vectors; at most `n_most` of a dense one."""
        if self.product is not None:
            return self.product.spectrum(n_most)
        matrix = self.whole().flatten(1)
        return lowrank.of_dense(matrix, min(*matrix.shape, n_most or min(matrix.shape)), generator)

    def exact(self, dtype: torch.dtype) -> Update | None:
        """The sum as an update that loses nothing but the rounding to `dtype`; None where nothing changes."""
        tensors: dict[str, torch.Tensor] = {}
        if self.factors is not None and self.factors[0].shape[1]:
            ones = (1,) * (len(self.shape) - 2)
            tensors["up"] = self.factors[0].reshape(*self.factors[0].shape, *ones).to(dtype).contiguous()
            tensors["down"] = self.factors[1].reshape(-1, *self.shape[1:]).to(dtype).contiguous()
        elif self.dense is not None:
            tensors["diff"] = self.dense.to(dtype)
        if self.bias is not None:
            tensors["bias"] = self.bias.to(dtype)
        return Update("lora" if "up" in tensors else "full", tensors) if tensors else None


def joint(sums: Sequence[Sum]) -> Sum:
    """The sum for a weight that stacks the rows of these modules' weights; thin where all are, biases left out.

    One `down` for all of them where they share it, else each has columns of its own in a block-diagonal `up`.
    """
    import torch

    shape = (sum(one.shape[0] for one in sums), *sums[0].shape[1:])
    thin = [one.factors for one in sums if one.factors is not None]
    if len(thin) < len(sums):
        return Sum(shape, None, torch.cat([one.whole() for one in sums]), None)
    if all(down.shape == thin[0][1].shape and down.equal(thin[0][1]) for _, down in thin):
        return Sum(shape, (torch.cat([up for up, _ in thin]), thin[0][1]), None, None)
    return Sum(shape, (torch.block_diag(*(up for up, _ in thin)), torch.cat([down for _, down in thin])), None, None)


def paths(terms: Sequence[Term]) -> list[str]:
    """Every module that some term changes, each once."""
    return list(dict.fromkeys(path for term in terms for path in term.delta.updates))


def sum_of(path: str, terms: Sequence[Term], shape: tuple[int, ...], weight: Weights | None = None) -> Sum:
    """The exact sum of the terms' changes of one module, in at least float32.

    Args:
        path: canonical.
        terms: with their weights; those of weight 0 take no part.
        shape: of the module's weight.
        weight: the base's weights, needed by algorithms whose ΔW depends on them.

    Raises:
        ValueError: a change depends on W, and `weight` is not given.
    """
    present = list(_present(path, terms))
    summed_bias = _bias_of(present)
    thin = [(w, _factors(update, shape)) for w, update in present]
    if len(shape) >= 2 and all(factors is not None for _, factors in thin):
        products = [(w, *factors) for w, factors in thin if factors is not None]
        return Sum(shape, lowrank.stacked(products) if products else None, None, summed_bias)
    dense = [w * _dense(path, update, shape, weight) for w, update in present if not _only_bias(update)]
    return Sum(shape, None, _summed(dense) if dense else None, summed_bias)


def resolved(
    path: str, terms: Sequence[Term], shape: tuple[int, ...], method: str, density: float,
    generator: torch.Generator, weight: Weights | None = None,
) -> Sum:  # fmt: skip
    """As `sum_of`, with conflicts resolved by `method` "ties" or "dare"; dense."""
    present = [(w, update) for w, update in _present(path, terms) if not _only_bias(update)]
    if not present or (len(present) == 1 and method == "ties"):
        return sum_of(path, terms, shape, weight)
    changes = [_thin_or_dense(path, w, update, shape, weight) for w, update in present]
    if method == "ties":
        made = conflict.ties(changes, shape, density)
    else:
        made = conflict.dare(changes, shape, density, generator)
    return Sum(shape, None, made, _bias_of(_present(path, terms)))


def _thin_or_dense(
    path: str, w: float, update: Update, shape: tuple[int, ...], weight: Weights | None
) -> conflict.Change:
    """A weighted change, in float32 or more, as its factors where it has some."""
    factors = _factors(update, shape) if len(shape) >= 2 else None
    if factors is None:
        return w * _dense(path, update, shape, weight)
    return w * factors[0], factors[1]


def relate(one: Sum, other: Sum) -> Overlap:
    """How two changes of one module meet, their weights included."""
    if one.factors is not None and other.factors is not None:
        return overlap.of_factors(one.factors, other.factors)
    return overlap.of_dense(one.whole(), other.whole())


def norm_of(total: Sum) -> float:
    """Frobenius norm of a sum, from the Gram matrices of its factors where it has some."""
    if total.product is not None:
        return total.product.norm
    return math.sqrt(lowrank.energy_of(total.dense)) if total.dense is not None else 0.0


def _present(path: str, terms: Sequence[Term]) -> Iterator[tuple[float, Update]]:
    for term in terms:
        if path in term.delta.updates and (w := term.weigh(path)) != 0:
            yield w, term.delta.updates[path]


def _bias_of(present: Iterable[tuple[float, Update]]) -> torch.Tensor | None:
    bias = [w * update.tensors["bias"].float() for w, update in present if "bias" in update.tensors]
    return _summed(bias) if bias else None


def _only_bias(update: Update) -> bool:
    return update.algorithm == "full" and "diff" not in update.tensors


def _factors(update: Update, shape: tuple[int, ...]) -> tuple[torch.Tensor, torch.Tensor] | None:
    import torch

    if _only_bias(update):
        return torch.zeros(shape[0], 0), torch.zeros(0, math.prod(shape[1:]))
    return adapters.factors(update.algorithm, update.tensors, shape)


def _dense(path: str, update: Update, shape: tuple[int, ...], weight: Weights | None) -> torch.Tensor:
    needs = adapters.needs_base(update.algorithm, update.tensors)
    base = weight(path) if needs and weight is not None else None
    return adapters.dense(update.algorithm, update.tensors, shape, base)


def _summed(parts: Sequence[torch.Tensor]) -> torch.Tensor:
    import torch

    return torch.stack(list(parts)).sum(0) if len(parts) > 1 else parts[0]


def by_pattern(weight: float, patterns: Mapping[str, float]) -> Weigh:
    """A weight that the first glob pattern which matches a module's path multiplies."""

    def weigh(path: str) -> float:
        return weight * next((factor for pattern, factor in patterns.items() if fnmatchcase(path, pattern)), 1.0)

    return weigh
