from functools import reduce

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from vla_mot.robots.moments import Moments, moments

PARTS = st.lists(st.integers(1, 40), min_size=3, max_size=6)
CENTRES = st.sampled_from([0.0, 1.0, -30.0, 1e6])


def parts_of(lengths: list[int], centre: float, seed: int) -> list[np.ndarray]:
    """Float64 rows of three dimensions, spread a thousandth around a centre that drifts from part to part."""
    random = np.random.default_rng(seed)
    return [
        centre + 1e-4 * place + 1e-3 * random.normal(size=(length, 3)) for place, length in enumerate(lengths)
    ]


def assert_those_of(found: Moments, rows: np.ndarray, centre: float) -> None:
    """Against extended precision, to what float64's rounding of the rows leaves of a deviation."""
    rounding = 2 * np.finfo(float).eps * max(abs(centre), 1)
    wide = rows.astype(np.longdouble)
    assert found.count == len(rows)
    np.testing.assert_allclose(found.mean, wide.mean(0).astype(float), rtol=0, atol=rounding)
    np.testing.assert_allclose(found.std, wide.std(0).astype(float), rtol=1e-14, atol=rounding)
    np.testing.assert_array_equal(found.min, rows.min(0))
    np.testing.assert_array_equal(found.max, rows.max(0))


@given(PARTS, CENTRES, st.integers(0, 2**32))
def test_merging_is_the_same_in_any_order_and_grouping(lengths, centre, seed):
    parts = parts_of(lengths, centre, seed)
    each = [Moments.of(torch.from_numpy(part)) for part in parts]
    rows = np.concatenate(parts)
    one_by_one = moments(torch.from_numpy(part) for part in parts)
    assert one_by_one is not None
    middle = len(each) // 2
    for found in (
        one_by_one,
        reduce(Moments.merged, reversed(each)),
        reduce(Moments.merged, each[:middle]).merged(reduce(Moments.merged, each[middle:])),
        Moments.of(torch.from_numpy(rows)),
    ):
        assert_those_of(found, rows, centre)


@pytest.mark.parametrize("centre", [1e6, -1e6])
def test_a_thousandth_around_a_million_survives_a_hundred_merges(centre):
    parts = parts_of([50] * 100, centre, 0)
    found = moments(torch.from_numpy(part) for part in parts)
    assert found is not None
    assert_those_of(found, np.concatenate(parts), centre)
    # What sums of squares would have made of it:
    rows = np.concatenate(parts)
    naive = np.sqrt(np.maximum((rows**2).mean(0) - rows.mean(0) ** 2, 0))
    assert (abs(naive / found.std.numpy() - 1) > 0.01).all()


def test_parts_may_be_empty_but_not_all():
    rows = torch.randn(9, 2)
    found, whole = moments([rows[:0], rows[:4], rows[4:4], rows[4:]]), Moments.of(rows)
    assert found is not None
    torch.testing.assert_close(found.mean, whole.mean)
    assert moments([rows[:0]]) is None


def test_unequal_counts_weigh_as_many_rows_do():
    few, many = Moments.of(torch.zeros(1, 1)), Moments.of(torch.ones(999, 1))
    assert few.merged(many).mean.item() == pytest.approx(0.999)
    assert many.merged(few).std.item() == pytest.approx((0.999 * 0.001) ** 0.5)
