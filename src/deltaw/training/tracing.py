"""What a computation needs, found by running it on the meta device: live bytes at their peak, and FLOPs."""

from __future__ import annotations

import contextlib
import weakref
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry


@dataclass(frozen=True)
class Traced:
    """What was found.

    Args:
        peak_bytes: most bytes of tensors alive at once, those that existed before not counted.
        left_bytes: alive at the end, of those.
        flops: multiplications and additions of matrix products, convolutions and attention.
        n_ops: operations that were dispatched.
    """

    peak_bytes: int
    left_bytes: int
    flops: int
    n_ops: int


def trace(work: Callable[[], object], existing: Iterable[Tensor]) -> Traced:
    """Runs `work`, whose tensors are all on the meta device, and watches what it would allocate.

    The real graph runs, autograd included, so what the backward pass keeps is what it would keep.

    Args:
        work: the computation.
        existing: tensors that are there before it, such as weights.
    """
    with _fused_attention(), _Watch(existing) as watch:
        kept = work()
    found = Traced(watch.peak, watch.live, watch.flops, watch.n_ops)
    del kept
    return found


_COUNTS = {
    **flop_registry,
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: flop_registry[
        torch.ops.aten._scaled_dot_product_flash_attention
    ],
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward: flop_registry[
        torch.ops.aten._scaled_dot_product_flash_attention_backward
    ],
}
"""torch counts the fused attention of GPUs, and not the CPU's, which the meta device runs too."""
_CONVOLUTIONS = frozenset({torch.ops.aten.convolution, torch.ops.aten.convolution_backward})


class _Watch(TorchDispatchMode):
    """Counts the bytes of every storage from its first use to its release."""

    def __init__(self, existing: Iterable[Tensor]):
        super().__init__()
        self.live = self.peak = self.flops = self.n_ops = 0
        self._existing = {tensor.untyped_storage()._cdata for tensor in existing}
        self._held: dict[int, weakref.ref[Any]] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        self.n_ops += 1
        made: tuple[Any, ...] = tuple(out) if isinstance(out, tuple | list) else (out,)
        for tensor in made:
            if isinstance(tensor, Tensor):
                self._hold(tensor)
        count = _COUNTS.get(func.overloadpacket)
        if count is not None:
            self.flops += count(*args, **kwargs, out_val=out)
            if func.overloadpacket in _CONVOLUTIONS:
                self.peak = max(self.peak, self.live + self._copies(*args, *made))
        return out

    def _hold(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        address, n_bytes = storage._cdata, storage.nbytes()
        if address in self._existing or address in self._held:
            return
        self.live += n_bytes
        self.peak = max(self.peak, self.live)

        def release(_: object) -> None:
            self.live -= n_bytes
            del self._held[address]

        self._held[address] = weakref.ref(storage, release)

    def _copies(self, *used: object) -> int:
        """Bytes of what a convolution reads and writes, weights aside: libraries bring it into a layout of their own."""
        storages = [t.untyped_storage() for t in used if isinstance(t, Tensor)]
        return sum(storage.nbytes() for storage in storages if storage._cdata not in self._existing)


_attention = functional.scaled_dot_product_attention


@contextlib.contextmanager
def _fused_attention() -> Iterator[None]:
    """The fused attention that real devices choose; the meta device would write out the whole attention matrix.

    The function itself is replaced, since torch's function modes do not see what a checkpoint computes in the backward pass.
    """
    functional.scaled_dot_product_attention = _fused
    try:
        yield
    finally:
        functional.scaled_dot_product_attention = _attention


def _fused(
    query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None, dropout_p: float = 0.0,
    is_causal: bool = False, scale: float | None = None, enable_gqa: bool = False,
) -> Tensor:  # fmt: skip
    if not query.is_meta:
        return _attention(query, key, value, attn_mask, dropout_p, is_causal, scale=scale, enable_gqa=enable_gqa)
    out, _ = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
        query, key, value, dropout_p, is_causal, attn_mask=attn_mask, scale=scale
    )
    return out
