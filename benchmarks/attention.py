"""Attention forward and backward, torch's fused kernel beside DeltaW's: `python -m benchmarks.attention`.

Milliseconds without gradients / with the backward, the least of several, of the sizes that one layer has; bfloat16 on the CPU.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional

from deltaw.families import attention

SIZES = {
    "bundled, batch 16, 16×16": (16, 4, 256, 256, 32),
    "bundled, batch 16, 16×16 to text": (16, 4, 256, 77, 32),
    "bundled, batch 16, 8×8": (16, 4, 64, 64, 48),
    "bundled, batch 4, 16×16": (4, 4, 256, 256, 32),
    "bundled, batch 4, 4×4": (4, 4, 16, 16, 48),
    "bundled, batch 4, 2×2 to text": (4, 4, 4, 77, 48),
    "SD 1.5, 256 px, 32×32": (1, 8, 1024, 1024, 40),
    "SD 1.5, 256 px, 32×32 to text": (1, 8, 1024, 77, 40),
    "SD 1.5, 256 px, 16×16": (1, 8, 256, 256, 80),
    "SD 1.5, 512 px, 64×64": (1, 8, 4096, 4096, 40),
    "SD 1.5, 512 px, 64×64 to text": (1, 8, 4096, 77, 40),
    "XL, 512 px, 32×32": (1, 10, 1024, 1024, 64),
    "XL, 1024 px, 64×64": (1, 10, 4096, 4096, 64),
}
"""(pictures, heads, queries, keys, numbers a head)."""
RUNS = 5


def least_ms(work: Callable[[], object]) -> float:
    """Of `RUNS` runs after a first."""
    work()
    seconds = []
    for _ in range(RUNS):
        start = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - start)
    return 1e3 * min(seconds)


def measure(mix: Callable[[Tensor, Tensor, Tensor], Tensor], size: tuple[int, int, int, int, int]) -> str:
    """Forward / forward and backward."""
    n, heads, queries, keys, width = size
    # heads are the third axis in memory, as the projections leave them
    stored = [torch.randn(n, t, heads, width, dtype=torch.bfloat16, requires_grad=True) for t in (queries, keys, keys)]
    grad = torch.randn(n, queries, heads, width, dtype=torch.bfloat16).transpose(1, 2)

    def forward() -> Tensor:
        return mix(*(x.transpose(1, 2) for x in stored))

    with torch.no_grad():
        without = least_ms(forward)
    return f"{without:7.2f} /{least_ms(lambda: torch.autograd.grad(forward(), stored, grad)):7.2f}"


def main() -> None:
    mixes = {
        "fused": functional.scaled_dot_product_attention,
        "whole": attention.whole,
        "in pieces": attention.piecewise,
        "in float32": attention.in_float32,
    }
    print(f"{'':32} {'   '.join(f'{name:>16}' for name in mixes)}")
    for name, size in SIZES.items():
        print(f"{name:32} {'   '.join(measure(mix, size) for mix in mixes.values())}")
    print(
        f"float32 is used up to {attention.FEW} weights; else without gradients pieces, with them from {attention.KEPT} weights on"
    )


if __name__ == "__main__":
    main()
