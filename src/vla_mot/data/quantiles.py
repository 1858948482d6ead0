"""Quantiles of rows that are too many to sort, and of several sets of rows together.

A set of rows is summarized by 1001 *knots*, its quantiles 0, 0.001, …, 1: between two neighbours lies a thousandth of
the rows. Straight lines through the knots are its distribution function to within 0.001 of rank. The quantiles of a
union are read off the sum of these functions, each weighted by its number of rows.

Legend: `n` rows, `D` dims, `K` knots, `P` sets, `Q` asked quantiles.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from vla_mot.keyed import keyed_uniform

KNOTS = 1001
SAMPLE = 2**18
"""Rows that are sorted at most. Of more, the rank of a quantile q is known to ± √(q(1−q)) / 512 (one deviation)."""
_TIE = 1e-12  # of rank: weights that sum to a share only up to rounding still reach it


def spread_ranks(total: int) -> Tensor:
    """At most `SAMPLE` of the ranks 0 … total−1, evenly spread, ascending: all of them where they are so few.

    Otherwise one from each of `SAMPLE` equal spans, at a place of its own: a fixed stride would meet anything periodic
    in step. The same `total` gives the same ranks everywhere.
    """
    if total <= SAMPLE:
        return torch.arange(total)
    spans = torch.arange(SAMPLE)
    within = 1 - keyed_uniform(0, 0, 0, spans, 1)[:, 0]  # [0, 1)
    return ((spans + within) * (total / SAMPLE)).long().clamp(max=total - 1)


def knots_of(rows: Tensor) -> Tensor:
    """`(n, D)` rows, n at least 1 → `(K, D)` float32 knots, linear between two rows."""
    ordered = rows.T.contiguous().sort(dim=1).values.double()  # (D, n)
    place = torch.linspace(0, 1, KNOTS, dtype=torch.float64) * (ordered.shape[1] - 1)
    below = place.floor().long()
    above = (below + 1).clamp(max=ordered.shape[1] - 1)
    low, high = ordered[:, below], ordered[:, above]
    return (low + (high - low) * (place - below)).T.float().contiguous()


def pooled_quantiles(knots: Sequence[Tensor], counts: Sequence[int], shares: Sequence[float]) -> Tensor:
    """Quantiles of the union of P sets of rows: `(Q, D)` float64.

    knots: `(K, D)` of each set. counts: its rows. shares: of the rows that lie below, in [0, 1].
    The smallest value at which the weighted sum of the sets' distribution functions reaches the share.
    """
    weights = torch.tensor(counts, dtype=torch.float64) / sum(counts)
    asked = torch.tensor(shares, dtype=torch.float64)
    found = [
        _inverse(torch.stack([each[:, dim].double() for each in knots]), weights, asked)
        for dim in range(knots[0].shape[1])
    ]
    return torch.stack(found, dim=1) if found else torch.empty(len(asked), 0, dtype=torch.float64)


def _inverse(knots: Tensor, weights: Tensor, asked: Tensor) -> Tensor:
    """`(P, K)` knots of one dimension → `(Q,)`: bisection over all knots, a straight line between the last two."""
    points = knots.flatten().unique()
    low, high = torch.zeros_like(asked, dtype=torch.long), torch.full_like(asked, len(points) - 1).long()
    while bool((low < high).any()):
        middle = (low + high) // 2
        reached = _share_below(knots, weights, points[middle], inclusive=True) >= asked - _TIE
        low, high = torch.where(reached, low, middle + 1), torch.where(reached, middle, high)
    here, before = points[low], points[(low - 1).clamp(min=0)]
    until_here = _share_below(knots, weights, here, inclusive=False)
    until_before = _share_below(knots, weights, before, inclusive=True)
    part = ((asked - until_before) / (until_here - until_before)).clamp(0, 1)
    # Unless the share is reached on the line between, many rows have the value `here` itself, and it is among them.
    return torch.where((until_here > asked) & (low > 0), before + part * (here - before), here)


def _share_below(knots: Tensor, weights: Tensor, values: Tensor, *, inclusive: bool) -> Tensor:
    """The share of all rows below each of `(Q,)` values; inclusive: with those that are equal."""
    steps = knots.shape[1] - 1
    passed = torch.searchsorted(knots, values.expand(len(knots), -1).contiguous(), right=inclusive)
    above = passed.clamp(1, steps)
    high, low = knots.gather(1, above), knots.gather(1, above - 1)
    between = (above - 1 + (values - low) / (high - low)) / steps
    share = torch.where(passed == 0, 0.0, torch.where(passed > steps, 1.0, between))
    return (weights[:, None] * share).sum(0)
