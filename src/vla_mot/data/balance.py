"""Cuts weighted datasets into equal shares of mass and, as well as it goes, of cost.

Small datasets are dealt whole (`dealing`). The rest is laid on a line by density (cost per mass), the lightest first; a
dataset is as long as its mass. Every share takes a run from the light end and a run from the dense end, together of the
mass that it still needs. The more of it comes from the dense end, the more it costs; all from there costs at least what
that mass of the rest costs on average, all from the light end at most that; so some split costs exactly that. What
stays between the two ends is such a line again.

    light [ a  a | b b  b  c  c  c  d  d  d | e ] dense      a share: all of a, a part of e
            taken                             taken

Each share makes at most two cuts, one at each end. A cut is saved where another split needs fewer of them and keeps the
cost of the line so far within `SLACK` of a share: then every share, and every run of consecutive shares, gets from the
line what it should to within 2·SLACK of a share's cost. With what was dealt, a share costs what is fair to within
2·SLACK + 3/GRAIN in the worst case, and a few per cent in practice.

Masses are whole numbers here, in exact proportion to the floats that came, and so are positions on the line: no sum
rounds. An end that lies within 2^-41 of a share from a dataset's is moved there, since masses like 0.1 are themselves
rounded: less than is ever drawn, and it moves no dataset's probability by more than 2e-12 of itself, nor by 1e-12.
"""

import math
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterator, Sequence
from fractions import Fraction
from itertools import accumulate

from vla_mot.data.dealing import deal

SLACK = 0.02
"""How far the cost of all that was taken from the line may be off to save a cut, as a part of one share's."""
_SNAP = 41  # bits: 2^-41 of a share, what 4096 shares of rounded masses may be off by
_SNAP_COST = 1e-6  # of a share's cost; an end is not moved over more than that
_FINER = 64  # bits by which a unit is finer than the floats need


def share_out(
    masses: Sequence[float], costs: Sequence[float], names: Sequence[str], parts: int
) -> tuple[list[int], list[dict[int, int]]]:
    """Each dataset's mass in whole units, and the V shares in turn: dataset → units of it that the share takes.

    masses, costs, names: `(D,)`, masses above 0 and costs at least 0; their order does not matter. parts: V.
    """
    units = _units(masses, parts)
    mass, cost = math.fsum(masses), math.fsum(costs) or 1.0
    hands = deal([m / mass for m in masses], [c / cost for c in costs], names, parts)
    given = {i for hand in hands for i in hand}
    rest = [i for i in range(len(names)) if i not in given]
    share = sum(units) // parts
    line = _Line(
        sorted(rest, key=lambda i: (costs[i] / masses[i], names[i])), units, costs, share, cost / parts
    )
    runs = line.runs([share - sum(units[i] for i in hand) for hand in hands])
    return units, [{i: units[i] for i in hand} | run for hand, run in zip(hands, runs, strict=True)]


class _Line:
    """Datasets by density, and what was not yet taken of them.

    order: their places in `units` and `costs`. share, cost_share: one share of everything, dealt or not.
    """

    def __init__(
        self,
        order: Sequence[int],
        units: Sequence[int],
        costs: Sequence[float],
        share: int,
        cost_share: float,
    ) -> None:
        self._order, self._share, self._cost_share = order, share, cost_share
        self._ends = list(accumulate(units[i] for i in order))
        self._starts = [0, *self._ends[:-1]]
        self._costs = [costs[i] for i in order]
        self._before = [0.0, *accumulate(self._costs)]

    def runs(self, needs: Sequence[int]) -> Iterator[dict[int, int]]:
        """Take what each share needs, the whole line in all: dataset → units of it."""
        low, high = 0, self._ends[-1]
        total = self._before[-1]
        for wanted in list(accumulate(needs))[:-1]:
            mass = wanted - (self._ends[-1] - (high - low))
            cost = total * (wanted / self._ends[-1]) - (total - self._cost(low, high))
            light = self._split(low, high, mass, cost)
            new_low = self._snapped(low + light)
            new_high = self._snapped(high - mass + light)
            yield self._taken((low, new_low), (new_high, high))
            low, high = new_low, new_high
        yield self._taken((low, high))

    def _split(self, low: int, high: int, mass: int, cost: float) -> int:
        """How much of `mass` comes from the light end of what is left, `[low, high)`, for it to cost `cost`."""
        floor = high - mass  # the share is [low, low + light) and [floor + light, high)

        def price(light: int) -> float:
            return self._cost(low, low + light) + self._cost(floor + light, high)

        knots = [0, mass]
        for origin in (low, floor):
            inner = bisect_right(self._ends, origin), bisect_left(self._ends, origin + mass)
            # The price falls along the knots: the last one above the cost, and the first that is not.
            place = bisect_left(self._ends, -cost, *inner, key=lambda end: -price(end - origin))
            knots += [self._ends[k] - origin for k in (place - 1, place) if inner[0] <= k < inner[1]]
        exact = _between(knots, price, cost)

        def rank(light: int) -> tuple[bool, int, float, int]:
            off = abs(price(light) - cost)
            within = off <= SLACK * self._cost_share
            cuts = self._cuts(low, light) + self._cuts(high, light - mass)
            return not within, cuts if within else 0, off, light

        return min([*knots, exact], key=rank)

    def _cuts(self, end: int, moved: int) -> int:
        """1 where moving an end cuts a dataset, 0 where it stays or comes to a dataset's end."""
        k = self._at(end + moved)
        return int(moved != 0 and self._snapped(end + moved) not in (self._starts[k], self._ends[k]))

    def _snapped(self, position: int) -> int:
        """The end of a dataset that is as good as here, or the position itself."""
        k = self._at(position)
        near = min((self._starts[k], self._ends[k]), key=lambda end: abs(end - position))
        small = abs(near - position) <= self._share >> _SNAP
        cheap = abs(self._cost(position, near)) <= _SNAP_COST * self._cost_share
        return near if small and cheap else position

    def _at(self, position: int) -> int:
        """The place on the line of the dataset that ends at the position or lies around it."""
        return bisect_left(self._ends, position)

    def _cost(self, start: int, stop: int) -> float:
        return self._cost_before(stop) - self._cost_before(start)

    def _cost_before(self, position: int) -> float:
        k = self._at(position)
        part = (position - self._starts[k]) / (self._ends[k] - self._starts[k])
        return self._before[k] + self._costs[k] * part

    def _taken(self, *runs: tuple[int, int]) -> dict[int, int]:
        """What lies in the runs: dataset → units."""
        found: dict[int, int] = {}
        for start, stop in runs:
            k = bisect_right(self._ends, start)
            while start < stop and k < len(self._ends) and self._starts[k] < stop:
                dataset = self._order[k]
                amount = min(stop, self._ends[k]) - max(start, self._starts[k])
                found[dataset] = found.get(dataset, 0) + amount
                k += 1
        return found


def _between(knots: Sequence[int], price: Callable[[int], float], cost: float) -> int:
    """Where a price that falls linearly between the knots meets the cost; the nearest knot where it never does."""
    priced = sorted((knot, price(knot)) for knot in set(knots))
    left, high = max((pair for pair in priced if pair[1] > cost), default=priced[0])
    right, low = min((pair for pair in priced if pair[1] <= cost), default=priced[-1])
    if not low < cost < high:
        return left if cost >= high else right
    return left + int((right - left) * Fraction((high - cost) / (high - low)))


def _units(masses: Sequence[float], parts: int) -> list[int]:
    """Floats as whole numbers, exactly in proportion, such that their sum divides by `parts`."""
    ratios = [mass.as_integer_ratio() for mass in masses]
    scale = max(denominator for _, denominator in ratios)  # all are powers of two
    return [(numerator * (scale // denominator) * parts) << _FINER for numerator, denominator in ratios]
