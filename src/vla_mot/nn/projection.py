"""A linear map, as one product or as several that are computed side by side.

A CPU's library shares a product of few rows badly among its threads. As several products of some of the columns each,
computed by one batched product, every thread has one of its own (docs/benchmarks.md).
"""

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

_FEWEST_ROWS = 16
_FEWEST_COLUMNS = 64
"""Of each product: below, there is nothing to share."""


class Projection(NamedTuple):
    """`(…, D)` → `(…, N)`.

    weight: `(N, D)`. bias: `(N,)`, or None. products: how many side by side, each for as many of the N; one where they
        do not divide N, or would be small.
    """

    weight: Tensor
    bias: Tensor | None = None
    products: int = 1

    def __call__(self, x: Tensor) -> Tensor:
        """Equal to `F.linear` but for rounding."""
        columns, depth = self.weight.shape
        few = x.numel() < _FEWEST_ROWS * depth or columns < _FEWEST_COLUMNS * self.products
        if self.products == 1 or columns % self.products or few:
            return F.linear(x, self.weight, self.bias)
        rows = x.reshape(-1, depth).expand(self.products, -1, -1)
        sides = self.weight.unflatten(0, (self.products, -1)).transpose(1, 2)
        if self.bias is None:
            out = torch.bmm(rows, sides)
        else:
            out = torch.baddbmm(self.bias.view(self.products, 1, -1), rows, sides)
        return out.transpose(0, 1).reshape(*x.shape[:-1], columns)

    def behind(self, first: int) -> "Projection":
        """The map to what follows the first so many of the N."""
        return Projection(
            self.weight[first:], None if self.bias is None else self.bias[first:], self.products
        )


def side_by_side(weight: Tensor) -> int:
    """How many products pay for maps of such a weight: one for each thread of a CPU in float32.

    Elsewhere one: a GPU shares a product well, and without MKL a batched product computes one after another.
    """
    pays = weight.device.type == "cpu" and weight.dtype == torch.float32 and torch.backends.mkl.is_available()
    return torch.get_num_threads() if pays else 1
