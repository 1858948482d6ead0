"""Deals small datasets whole, so that every share opens about as many datasets as any other.

Balanced by mass and cost alone, one share may hold a thousand small datasets and another three large ones. So those
that are small beside a share are dealt like cards: in rounds of V, the largest first, one to each share. Within a round
they go where they even out the excess so far; a dataset's excess is its cost beyond what as much mass of the rest,
which is not dealt, costs on average. So excesses never spread further than those of single datasets do, and these are
small; the rest fills every share up (`balance`).
"""

import math
from collections.abc import Sequence

GRAIN = 16
"""A dataset may be dealt where neither its mass nor its cost is more than this part of a share's."""


def deal(
    masses: Sequence[float], costs: Sequence[float], names: Sequence[str], parts: int
) -> list[list[int]]:
    """The places of the datasets that each of the V shares gets whole: the smallest ones, up to half of everything.

    masses, costs: `(D,)`, each of sum 1, or costs all 0. Some dataset is left, and some of its mass for every share.
    """
    size = [max(mass, cost) for mass, cost in zip(masses, costs, strict=True)]
    rising = sorted(range(len(names)), key=lambda i: (size[i], names[i]))
    chosen, weight = 0, size[rising[0]]
    while weight <= 0.5 and size[rising[chosen]] * parts * GRAIN <= 1:
        chosen += 1
        weight += size[rising[chosen]]
    rest = rising[chosen:]
    density = math.fsum(costs[i] for i in rest) / math.fsum(masses[i] for i in rest)
    excess = [cost - density * mass for mass, cost in zip(masses, costs, strict=True)]
    return _rounds(rising[:chosen][::-1], excess, names, parts)


def _rounds(
    order: Sequence[int], excess: Sequence[float], names: Sequence[str], parts: int
) -> list[list[int]]:
    """Deal in the given order. Of every round, the greatest excess goes to the share that has the least so far."""
    hands: list[list[int]] = [[] for _ in range(parts)]
    so_far = [0.0] * parts
    for first in range(0, len(order), parts):
        cards = [(-excess[i], names[i], i) for i in order[first : first + parts]]
        blanks = [(0.0, "", -1)] * (parts - len(cards))
        takers = sorted(range(parts), key=lambda part: (so_far[part], part))
        for (_, _, i), part in zip(sorted(cards + blanks), takers, strict=True):
            if i >= 0:
                hands[part].append(i)
                so_far[part] += excess[i]
    return hands
