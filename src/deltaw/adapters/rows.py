"""Rows of a change: taking a change of stacked weights apart into its modules' changes, and stacking them.

FLUX and SD 3 have q, k and v in one weight in their original code. Of most algorithms one tensor runs along the rows
of ΔW and the others are shared, so that a slice of that tensor is the module's change, exactly and bit for bit.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

Tensors = Mapping[str, "torch.Tensor"]

COMMON = {"bias": 0, "magnitude": 0}
"""Axis of the rows in the tensors that go with any algorithm; DoRA norms per input have no rows and do not split."""


def always(shapes: Mapping[str, tuple[int, ...]], n_rows: Sequence[int]) -> str:
    """The `cannot_split` of an algorithm whose rows can be cut anywhere."""
    return ""


def split(tensors: Tensors, n_rows: Sequence[int], axes: Mapping[str, int]) -> list[dict[str, torch.Tensor]]:
    """The parts of `n_rows` rows each: tensors in `axes` are cut along that axis, the others belong to every part."""
    cuts = list(itertools.pairwise(itertools.accumulate(n_rows, initial=0)))
    along = {**COMMON, **axes}
    return [
        {
            name: tensor.narrow(along[name], begin, end - begin).clone() if name in along else tensor
            for name, tensor in tensors.items()
        }
        for begin, end in cuts
    ]


def join(
    parts: Sequence[Tensors | None], n_rows: Sequence[int], axes: Mapping[str, int], absent: float | None = 0.0
) -> dict[str, torch.Tensor]:
    """One change of the stacked weight; the inverse of `split`.

    Args:
        parts: the modules' tensors; None is a module without a change.
        n_rows: of each module, in the length of the cut axes.
        axes: tensor to the axis of its rows.
        absent: what fills the rows of a module without a change so that it has none; None: nothing does.

    Raises:
        ValueError: what keeps it from being exact.
    """
    import torch

    present = [part for part in parts if part is not None]
    first, along = present[0], {**COMMON, **axes}
    if None in parts and (absent is None or "magnitude" in first):
        raise ValueError("a change of some of the stacked modules only does not join into one of all")
    found: dict[str, torch.Tensor] = {}
    for name, tensor in first.items():
        if name not in along:
            if not all(same(part[name], tensor) for part in present):
                raise ValueError(f"the modules' {name} differ, and the stacked weight has one for all")
            found[name] = tensor
            continue
        if len({part[name].dtype for part in present}) > 1:
            raise ValueError(f"the modules' {name} are of different types")
        axis, fill = along[name], 0.0 if name in COMMON else absent
        pieces = [
            part[name] if part is not None else _filled(tensor, axis, n, fill)
            for part, n in zip(parts, n_rows, strict=True)
        ]
        found[name] = torch.cat(pieces, dim=axis)
    return found


def _filled(like: torch.Tensor, axis: int, n: int, value: float | None) -> torch.Tensor:
    shape = list(like.shape)
    shape[axis] = n
    return like.new_full(shape, value or 0.0)


def same(a: torch.Tensor, b: torch.Tensor) -> bool:
    """Equal bit for bit (NaN aside), type and shape included."""
    return a is b or (a.dtype == b.dtype and a.shape == b.shape and a.equal(b))
