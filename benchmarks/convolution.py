"""One convolution's forward and backward to its input: torch's, and as DeltaW computes it where the weights are frozen.

    python -m benchmarks.convolution [--batch 1 2 4]

Stable Diffusion 1.5's 3×3 layers at 256 px, in bfloat16; its network's other weights lie between two calls of one layer, so the
cache is swept before every call. Medians of calls in turns.
"""

from __future__ import annotations

import argparse
import copy
import statistics
import time

import torch
from torch import nn

from deltaw.families import convolution

LAYERS = ((320, 320, 32), (640, 640, 16), (1280, 640, 16), (640, 1280, 8), (1280, 1280, 8), (2560, 1280, 8), (1280, 1280, 4), (2560, 1280, 4))  # fmt: skip
"""Channels in, channels out, side of the latents."""
RUNS = 7
SWEPT = 30_000_000
"""Numbers that sweep the cache: 120 MB."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, nargs="+", default=[1])
    args = parser.parse_args()
    print("| layer | torch's | DeltaW's |\n| --- | --- | --- |")
    for batch in args.batch:
        for layer in LAYERS:
            show(batch, *layer)


def show(batch: int, n_in: int, n_out: int, side: int) -> None:
    """A row of the table."""
    torch.manual_seed(0)
    theirs = nn.Conv2d(n_in, n_out, 3, padding=1).to(torch.bfloat16).requires_grad_(False)
    ours = copy.deepcopy(theirs)
    convolution.freeze(ours, torch.device("cpu"))
    x = torch.randn(batch, n_in, side, side, dtype=torch.bfloat16, requires_grad=True)
    g = torch.randn(batch, n_out, side, side, dtype=torch.bfloat16)
    swept = torch.zeros(SWEPT)
    seconds: dict[nn.Module, list[float]] = {theirs: [], ours: []}
    for _ in range(RUNS):
        for layer, found in seconds.items():
            swept.add_(1)
            start = time.perf_counter()
            torch.autograd.grad(layer(x), x, g)
            found.append(time.perf_counter() - start)
    exact = nn.Conv2d(n_in, n_out, 3, padding=1).requires_grad_(False)
    exact.load_state_dict({name: tensor.float() for name, tensor in theirs.state_dict().items()})
    off = [" and ".join(f"{error:.2%}" for error in errors(layer, exact, x, g)) for layer in (theirs, ours)]
    medians = [f"{1e3 * statistics.median(found[1:]):.1f} ms" for found in seconds.values()]
    print(
        f"| {batch} × {n_in} → {n_out}, {side}×{side} | {medians[0]}, off by {off[0]} | {medians[1]}, off by {off[1]} |",
        flush=True,
    )


def errors(layer: nn.Module, exact: nn.Module, x: torch.Tensor, g: torch.Tensor) -> tuple[float, float]:
    """How far a layer's result and its gradient are from float32's, relative to them."""
    precise = x.detach().float().requires_grad_()
    wanted = exact(precise)
    found = layer(x)
    pairs = ((found, wanted), (torch.autograd.grad(found, x, g)[0], torch.autograd.grad(wanted, precise, g.float())[0]))
    first, second = (float((mine.detach() - other.detach()).norm() / other.detach().norm()) for mine, other in pairs)
    return first, second


if __name__ == "__main__":
    main()
