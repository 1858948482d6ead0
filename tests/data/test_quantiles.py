import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from vla_mot.data.quantiles import KNOTS, SAMPLE, knots_of, pooled_quantiles, spread_ranks
from vla_mot.robots.normalization import QUANTILES

SHARES = list(QUANTILES.values())


def pooled(*sets: np.ndarray, shares=SHARES) -> np.ndarray:
    knots = [knots_of(torch.from_numpy(rows)) for rows in sets]
    return pooled_quantiles(knots, [len(rows) for rows in sets], shares).numpy()


def assert_ranks(values: np.ndarray, rows: np.ndarray, slack: float, shares=SHARES) -> None:
    """Each value has the share of the rows on its left, give or take `slack`; equal rows lie on both sides."""
    for value, share in zip(values, shares, strict=True):
        near = 1e-6 * np.abs(value)  # knots are float32
        below, not_above = (rows < value - near).mean(0), (rows <= value + near).mean(0)
        assert (below - slack <= share).all(), (share, below)
        assert (not_above + slack >= share).all(), (share, not_above)


def test_few_rows_are_all_taken():
    assert spread_ranks(5).tolist() == [0, 1, 2, 3, 4]
    assert torch.equal(spread_ranks(SAMPLE), torch.arange(SAMPLE))


@pytest.mark.parametrize("total", [SAMPLE + 1, 50 * SAMPLE, 7 * 10**10 + 3])
def test_many_rows_are_sampled_one_per_span(total):
    ranks = spread_ranks(total)
    assert len(ranks) == SAMPLE
    span = torch.arange(SAMPLE).double() * (total / SAMPLE)
    assert bool((ranks >= span.floor()).all())
    assert bool((ranks <= (span + total / SAMPLE).ceil()).all())
    assert int(ranks[-1]) < total
    assert torch.equal(ranks, spread_ranks(total))


def test_the_sample_is_not_in_step_with_a_period():
    """Spans of fifty rows each, and rows that repeat every fifty: every phase is met about equally often."""
    phases = torch.bincount(spread_ranks(50 * SAMPLE) % 50, minlength=50).double()
    expected = SAMPLE / 50
    assert bool(((phases - expected).abs() < 5 * expected**0.5).all())


def test_knots_are_the_quantiles_of_the_rows():
    rows = np.random.default_rng(0).normal(size=(777, 3))
    expected = np.quantile(rows, np.linspace(0, 1, KNOTS), axis=0)
    np.testing.assert_allclose(knots_of(torch.from_numpy(rows)), expected, rtol=1e-6, atol=1e-7)
    assert knots_of(torch.ones(1, 2)).tolist() == [[1.0, 1.0]] * KNOTS
    assert knots_of(torch.empty(9, 0)).shape == (KNOTS, 0)


def test_one_set_gives_its_own_knots():
    rows = np.random.default_rng(1).normal(size=(5000, 2))
    knots = knots_of(torch.from_numpy(rows)).numpy()
    np.testing.assert_array_equal(pooled(rows), knots[[10, 100, 500, 900, 990]])


def test_lines_are_added_with_their_weights():
    """Two uniform sets side by side: the pooled distribution is known in closed form."""
    left, right = np.linspace(0, 1, KNOTS)[:, None], np.linspace(1, 3, KNOTS)[:, None]
    np.testing.assert_allclose(pooled(left, right)[:, 0], [0.02, 0.2, 1.0, 2.6, 2.96], rtol=1e-6)
    knots = [torch.from_numpy(left), torch.from_numpy(right)]
    found = pooled_quantiles(knots, [3, 1], [0.75, 0.3])
    np.testing.assert_allclose(found[:, 0], [1.0, 0.4], rtol=1e-12)


def test_values_that_many_rows_share_are_found_exactly():
    """An open and a closed gripper, and a joint that never moves."""
    opened, closed = np.zeros((30, 1)), np.ones((70, 1))
    assert pooled(opened, closed)[:, 0].tolist() == [0, 0, 1, 1, 1]
    assert pooled(opened, np.ones((30, 1)))[:, 0].tolist() == [0, 0, 0, 1, 1]
    mixed = np.concatenate([opened, closed])
    assert pooled(mixed, mixed)[:, 0].tolist() == [0, 0, 1, 1, 1]
    assert pooled(*[opened + 3.0] * 3)[:, 0].tolist() == [3.0] * 5


@given(st.lists(st.integers(300, 2000), min_size=2, max_size=5), st.integers(0, 2**32))
def test_quantiles_of_a_union_are_those_of_all_rows(lengths, seed):
    random = np.random.default_rng(seed)
    sets = [
        np.stack(
            [
                random.normal(random.normal(scale=3), 10.0 ** random.uniform(-3, 1), size=length),
                random.exponential(size=length),
                random.integers(0, 3, size=length).astype(float),
            ],
            axis=1,
        )
        for length in lengths
    ]
    found = pooled(*sets)
    assert_ranks(found, np.concatenate(sets), slack=0.001 + 1 / min(lengths))
    assert (np.diff(found, axis=0) >= 0).all()
    # No order of the sets is another result.
    np.testing.assert_allclose(pooled(*reversed(sets)), found, rtol=1e-9, atol=1e-12)


def test_a_sample_keeps_the_ranks_of_all_rows():
    """As many deviations as the docstring of SAMPLE says, of rows that drift as a robot's do."""
    random = np.random.default_rng(0)
    total = 6 * SAMPLE + 5
    rows = (np.sin(np.arange(total) / 700) + 0.3 * random.normal(size=total))[:, None]
    knots = knots_of(torch.from_numpy(rows)[spread_ranks(total)])
    found = pooled_quantiles([knots], [total], SHARES).numpy()
    for value, share in zip(found, SHARES, strict=True):
        assert abs((rows < value).mean() - share) < 4 * (share * (1 - share)) ** 0.5 / 512


def test_no_dimension_has_no_quantile():
    assert pooled(np.empty((7, 0)), np.empty((9, 0))).shape == (5, 0)
