import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vla_mot.data.dealing import GRAIN, deal

SIZES = st.lists(st.tuples(st.floats(1e-6, 1), st.floats(0, 1)), min_size=1, max_size=80)


def of_sum_one(values) -> list[float]:
    total = math.fsum(values) or 1.0
    return [value / total for value in values]


def names(count: int) -> list[str]:
    return [f"set{i:03d}" for i in range(count)]


@settings(max_examples=300, deadline=None)
@given(SIZES, st.integers(1, 12))
def test_what_is_dealt_is_small_even_and_leaves_enough(datasets, parts):
    masses, costs = (of_sum_one(values) for values in zip(*datasets, strict=True))
    hands = deal(masses, costs, names(len(masses)), parts)
    given_out = [i for hand in hands for i in hand]
    assert len(hands) == parts and len(set(given_out)) == len(given_out) < len(masses)
    assert max(map(len, hands)) - min(map(len, hands)) <= 1
    assert all(max(masses[i], costs[i]) * parts * GRAIN <= 1 for i in given_out)
    assert all(sum(masses[i] for i in hand) < 0.6 / parts for hand in hands), (
        "room for the rest in every share"
    )
    rest = set(range(len(masses))) - set(given_out)
    density = sum(costs[i] for i in rest) / sum(masses[i] for i in rest)
    excess = [sum(costs[i] - density * masses[i] for i in hand) for hand in hands]
    assert (max(excess) - min(excess)) * parts <= 3 / GRAIN + 1e-9


def test_small_ones_are_dealt_by_hand():
    """Two shares; 28 datasets of a hundredth and nine of eight hundredths: the small ones go one to each in turn."""
    masses = [0.01] * 28 + [0.08] * 9
    hands = deal(masses, masses, names(37), 2)
    assert [len(hand) for hand in hands] == [14, 14]
    assert sorted(hands[0] + hands[1]) == list(range(28))


def test_the_dear_goes_where_it_has_been_cheap():
    """Rounds of two, dear beside cheap: the first round's dear one is followed by the second round's cheap one."""
    small = [0.006, 0.002, 0.005, 0.001]  # costs; excess 0.006, 0.002, 0.005, 0.001 less the same for all
    masses, costs = [0.007] * 4 + [0.972], [*small, 1 - sum(small)]
    hands = deal(masses, costs, names(5), 2)
    totals = sorted(sum(costs[i] for i in hand) for hand in hands)
    assert totals == pytest.approx([0.007, 0.007])


@pytest.mark.parametrize(("masses", "parts"), [([1.0], 1), ([1.0], 5), ([0.5, 0.5], 8), ([0.25] * 4, 1)])
def test_large_ones_are_not(masses, parts):
    assert deal(masses, masses, names(len(masses)), parts) == [[]] * parts


def test_at_most_half_is_dealt():
    masses = of_sum_one(np.random.default_rng(0).lognormal(0, 1, 500))
    assert 0.45 < sum(masses[i] for hand in deal(masses, masses, names(500), 4) for i in hand) <= 0.5
