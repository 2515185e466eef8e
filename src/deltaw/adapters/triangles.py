"""Skew-symmetric blocks kept as their upper triangles."""

from __future__ import annotations

import math
from collections.abc import Sequence


def block_size(triangles: Sequence[int]) -> int:
    """b of triangles of shape `(n, b·(b−1)/2)`; 0 where there is no such b."""
    if len(triangles) != 2 or triangles[1] < 1:
        return 0
    size = (1 + math.isqrt(1 + 8 * triangles[1])) // 2
    return size if size * (size - 1) // 2 == triangles[1] else 0
