"""All trained numbers in one buffer: a step of the optimizer is then a handful of operations, whatever the number of adapters."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn


class Flat:
    """Parameters, and their gradients, as views of two buffers.

    Args:
        parameters: by name; each becomes a view in place, and its gradient is one from then on.
        order: names in the order in which they lie in the buffers; the others follow in their own order.
        rounded: a precision in which a copy of the numbers is kept too, see `begin`; None keeps none.
    """

    def __init__(
        self, parameters: Mapping[str, nn.Parameter], order: Sequence[str] = (), rounded: torch.dtype | None = None
    ):
        names = list(dict.fromkeys((*order, *parameters)))
        self.values = nn.Parameter(torch.cat([parameters[name].detach().flatten() for name in names]))
        self.grads = torch.zeros_like(self.values)
        self.values.grad = self.grads
        self.rounded = None if rounded is None else self.values.detach().to(rounded)
        self._shapes = {name: p.shape for name, p in parameters.items()}
        self._begins: dict[str, int] = {}
        end = 0
        for name in names:
            self._begins[name], end = end, end + parameters[name].numel()
        values, grads = self.split(self.values.detach()), self.split(self.grads)
        for name, parameter in parameters.items():
            parameter.data, parameter.grad = values[name], grads[name]

    def begin(self) -> None:
        """Makes the gradients zero and rounds the numbers anew: the beginning of a step."""
        self.grads.zero_()
        if self.rounded is not None:
            self.rounded.copy_(self.values.detach())

    @property
    def names(self) -> list[str]:
        """Of the parameters, in their order."""
        return list(self._shapes)

    def split(self, whole: Tensor) -> dict[str, Tensor]:
        """A tensor like the buffers as views by name, in the order of the parameters."""
        return {name: self._view(whole, name) for name in self._shapes}

    def stacked(self, names: Sequence[str], whole: Tensor) -> Tensor:
        """What lies side by side in the buffers, matrices of as many columns, as one view: (Σ rows, columns)."""
        begins = [self._begins[name] for name in names]
        sizes = [self._shapes[name].numel() for name in names]
        if any(a + n != b for a, n, b in zip(begins, sizes, begins[1:], strict=False)):
            raise ValueError(f"{names} do not lie side by side")
        return whole[begins[0] : begins[-1] + sizes[-1]].view(-1, self._shapes[names[0]][1])

    def _view(self, whole: Tensor, name: str) -> Tensor:
        begin, shape = self._begins[name], self._shapes[name]
        return whole[begin : begin + shape.numel()].view(shape)
