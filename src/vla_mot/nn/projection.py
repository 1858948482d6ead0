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

    weight: `(N, D)`. bias: `(N,)`, or None. products: at most so many side by side, each for as many of the N.
    """

    weight: Tensor
    bias: Tensor | None = None
    products: int = 1

    def __call__(self, x: Tensor) -> Tensor:
        """Equal to `F.linear` but for rounding."""
        columns, depth = self.weight.shape
        products = _even(columns, self.products)
        if products == 1 or x.numel() < _FEWEST_ROWS * depth:
            return F.linear(x, self.weight, self.bias)
        rows = x.reshape(-1, depth)
        sides = torch.bmm(
            rows.expand(products, *rows.shape), self.weight.unflatten(0, (products, -1)).transpose(1, 2)
        )
        out = sides.transpose(0, 1).reshape(*x.shape[:-1], columns)
        return out if self.bias is None else out + self.bias

    def behind(self, first: int) -> "Projection":
        """The map to what follows the first so many of the N."""
        return Projection(
            self.weight[first:], None if self.bias is None else self.bias[first:], self.products
        )


def _even(columns: int, most: int) -> int:
    """The most products, up to `most`, that are of one size and not too narrow."""
    widest = max(min(most, columns // _FEWEST_COLUMNS), 1)
    return next(count for count in range(widest, 0, -1) if columns % count == 0)


def side_by_side(weight: Tensor) -> int:
    """How many products pay for maps of such a weight: one for each thread of a CPU in float32.

    Elsewhere one: a GPU shares a product well.
    """
    on_cpu = weight.device.type == "cpu" and weight.dtype == torch.float32
    return torch.get_num_threads() if on_cpu else 1
