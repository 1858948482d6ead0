"""Count, mean, squared deviations and extremes of rows, in float64: made in parts, merged in any order.

Chan's pairwise update keeps small deviations of large means, which sums of squares would lose. Merging is associative
and commutative up to float64's rounding.

Legend: `n` rows, `D` dims of one feature.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from functools import reduce
from typing import Self

import torch
from torch import Tensor


@dataclass(frozen=True)
class Moments:
    """Of `count` rows: mean, the sum of squared deviations from it, minimum and maximum, `(D,)` float64 each."""

    count: int
    mean: Tensor
    squares: Tensor
    min: Tensor
    max: Tensor

    @classmethod
    def of(cls, rows: Tensor) -> Self:
        """Of `(n, D)` rows of any float type; n is at least 1."""
        part = rows.double()
        mean = part.mean(0)
        return cls(part.shape[0], mean, ((part - mean) ** 2).sum(0), part.amin(0), part.amax(0))

    def merged(self, other: "Moments") -> "Moments":
        """Of the rows of both."""
        total = self.count + other.count
        shift = other.mean - self.mean
        between = shift**2 * (self.count * other.count / total)
        return Moments(
            count=total,
            mean=self.mean + shift * (other.count / total),
            squares=self.squares + other.squares + between,
            min=torch.minimum(self.min, other.min),
            max=torch.maximum(self.max, other.max),
        )

    @property
    def std(self) -> Tensor:
        """The standard deviation of the rows, not of a population that they were drawn from: `(D,)` float64."""
        return (self.squares / self.count).sqrt()


def moments(parts: Iterable[Tensor]) -> Moments | None:
    """Of rows that come in parts of `(n, D)`, merged as they come; None when there is no row."""
    found = (Moments.of(rows) for rows in parts if rows.shape[0])
    first = next(found, None)
    return None if first is None else reduce(Moments.merged, found, first)
