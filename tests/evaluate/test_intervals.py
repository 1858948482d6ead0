import json
import math

import numpy as np
import pytest

from vla_mot.evaluate.intervals import (
    Interval,
    clustered,
    clustered_difference,
    newcombe,
    paired_difference,
    percentile_interval,
    resampled,
    student_quantile,
    wilson,
)


@pytest.mark.parametrize(
    ("successes", "trials", "low", "high"),
    [
        (
            0,
            10,
            0.0,
            0.2775,
        ),  # Newcombe 1998, "Two-sided confidence intervals for the single proportion", Table I
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0, 0.1611),
        (1, 29, 0.0061, 0.1718),
        (29, 29, 0.8830, 1.0),
    ],
)
def test_wilson_gives_the_published_intervals(successes, trials, low, high):
    interval = wilson(successes, trials)
    assert interval.value == successes / trials
    assert (interval.low, interval.high) == pytest.approx((low, high), abs=5e-5)


def test_wilson_is_symmetric_and_narrows():
    a, b = wilson(30, 100), wilson(70, 100)
    assert (a.low, a.high) == pytest.approx((1 - b.high, 1 - b.low))
    assert wilson(300, 1000).high - wilson(300, 1000).low < (a.high - a.low) / 2
    assert wilson(30, 100, confidence=0.5).low > a.low


def test_nothing_is_known_without_trials():
    nothing = wilson(0, 0)
    assert math.isnan(nothing.value) and (nothing.low, nothing.high) == (0.0, 1.0)
    with pytest.raises(ValueError, match=r"0 … 5 trials, got 6"):
        wilson(6, 5)


def test_intervals_survive_json_even_without_a_number():
    there = [Interval(0.5, 0.25, 0.75), Interval(math.nan, 0.0, math.inf)]
    text = json.dumps([interval.to_dict() for interval in there], allow_nan=False)
    back = [Interval.from_dict(spec) for spec in json.loads(text)]
    assert back[0] == there[0]
    assert math.isnan(back[1].value) and back[1].low == 0.0 and math.isnan(back[1].high)


def test_the_paired_difference_counts_who_won_alone():
    first, second = [True] * 8 + [False, False], [True] * 3 + [False] * 6 + [True]
    found = paired_difference(first, second)
    assert found.difference.value == pytest.approx(0.4)
    assert (found.only_first, found.only_second) == (5, 1)
    assert found.p_value == pytest.approx(2 * (1 + 6) / 2**6)  # exact McNemar: P(at most 1 of 6), two-sided
    assert found.difference.low < 0.4 < found.difference.high


def test_pairing_is_what_makes_it_sharp():
    """Two controllers that agree on all but three episodes differ clearly, however variable the episodes."""
    first = [True, False] * 50
    second = [success and i > 12 for i, success in enumerate(first)]
    found = paired_difference(first, second)
    assert 0 < found.difference.low < found.difference.high < 0.15
    assert wilson(sum(second), 100).high > wilson(sum(first), 100).low  # unpaired, they overlap


def test_a_bootstrap_is_the_same_for_the_same_seed():
    draws = np.random.default_rng(1).normal(size=40) > 0
    assert paired_difference(draws, ~draws, seed=3) == paired_difference(draws, ~draws, seed=3)
    assert np.array_equal(resampled(7, seed=3), resampled(7, seed=3))
    assert not np.array_equal(resampled(7, seed=3), resampled(7, seed=4))


def test_a_bootstrap_covers_the_mean_about_as_often_as_it_says():
    random, hits = np.random.default_rng(0), 0
    for trial in range(200):
        sample = random.normal(size=60)
        interval = percentile_interval(sample.mean(), sample[resampled(60, 500, seed=trial)].mean(1))
        hits += interval.low <= 0 <= interval.high
    assert 0.90 <= hits / 200 <= 0.985


def test_infinite_draws_do_not_become_nan():
    interval = percentile_interval(2.0, np.array([1.0, np.inf, 2.0, 3.0, np.nan]))
    assert (interval.low, interval.high) == (1.0, np.inf)


@pytest.mark.parametrize(
    ("counts", "low", "high"),
    [
        ((36, 12, 2, 0), 0.0569, 0.3404),  # Newcombe 1998, "… based on paired data", Table II, method 10
        ((0, 2, 0, 0), 0.0700, 1.0),  # √(0.6576² + 0.6576²), Wilson's ends of 2 and of 0 in 2
        ((10, 0, 0, 0), -0.2775, 0.2775),
    ],
)
def test_newcombe_gives_the_published_intervals(counts, low, high):
    found = newcombe(*counts)
    assert (found.low, found.high) == pytest.approx((low, high), abs=5e-5)
    both, first, second, neither = counts
    back = newcombe(both, second, first, neither)
    assert (back.value, back.low, back.high) == pytest.approx((-found.value, -found.high, -found.low))


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ([True, False, True], [True, False, True]),
        ([True] * 4, [True] * 4),
        ([False, True] * 10, [False, True] * 10),
        ([True] * 2, [False] * 2),
    ],
)
def test_few_episodes_that_all_differ_alike_leave_room_for_others(first, second):
    """Every resample of them is the same."""
    found = paired_difference(first, second)
    assert found.difference.value == np.mean(first) - np.mean(second)
    assert found.difference.high - found.difference.low > 0.15
    assert -1 <= found.difference.low <= found.difference.value <= found.difference.high <= 1
    assert found.p_value == (0.5 if first != second else 1.0)


@pytest.mark.parametrize(("first", "second"), [([], []), ([True], [True, False])])
def test_unpaired_episodes_are_refused(first, second):
    with pytest.raises(ValueError, match="paired episodes are needed"):
        paired_difference(first, second)


@pytest.mark.parametrize(
    ("degrees", "quantile"),
    [(1, 12.706), (2, 4.303), (3, 3.182), (4, 2.776), (5, 2.571), (9, 2.262), (30, 2.042)],
)
def test_students_quantiles_are_those_of_the_tables(degrees, quantile):
    assert student_quantile(0.975, degrees) == pytest.approx(quantile, abs=5e-4)


def test_the_interval_over_clusters_is_students():
    found = clustered([0.1, 0.2, 0.3])
    assert found.value == pytest.approx(0.2)
    assert (found.low, found.high) == pytest.approx(
        (0.2 - 0.24841, 0.2 + 0.24841), abs=1e-5
    )  # 4.3027 · 0.1 / √3


def test_one_cluster_says_nothing_of_others_and_none_is_an_error():
    alone = clustered([0.4])
    assert alone.value == 0.4 and math.isnan(alone.low) and math.isnan(alone.high)
    with pytest.raises(ValueError, match="at least one cluster"):
        clustered([])


@pytest.mark.parametrize("values", [[1.0, 1.0, 1.0], [0.9 - 0.695, 0.835 - 0.63, 0.205]])
def test_clusters_without_any_spread_say_nothing_of_others(values):
    found = clustered(values, within=(0.0, 1.0))
    assert found.value == pytest.approx(values[0]) and math.isnan(found.low) and math.isnan(found.high)


def test_the_interval_over_clusters_covers_as_often_as_it_says():
    drawn = np.random.default_rng(0).normal(0.3, 0.1, size=(2000, 3))
    covered = [found.low <= 0.3 <= found.high for found in map(clustered, drawn.tolist())]
    assert np.mean(covered) == pytest.approx(0.95, abs=0.015)  # three standard errors
    few = [np.quantile(row, 0.025) <= 0.3 <= np.quantile(row, 0.975) for row in drawn]
    assert np.mean(few) < 0.8  # a percentile of three clusters would not


def test_the_difference_over_seeds_is_of_paired_episodes_and_as_wide_as_seeds_differ():
    full = [[True, True, True, False], [True, True, False, False], [True, True, True, True]]
    less = [[True, False, True, False], [True, False, False, False], [True, True, False, True]]
    found = clustered_difference(full, less)
    assert found.value == 0.25 and math.isnan(found.low)  # every seed gains one of four
    apart = clustered_difference(full, [less[2], less[0], less[1]])
    assert (
        apart.value == pytest.approx(0.25) and apart.low < -0.5 and apart.high == 1.0
    )  # cut at what is possible
    more = clustered_difference(full * 4, [[not win for win in seed] for seed in full * 4])
    assert -1.0 <= more.low < more.value < more.high <= 1.0


@pytest.mark.parametrize("second", [[[True]], [[True, False], [True]], [[], []]])
def test_unpaired_seeds_or_episodes_are_refused(second):
    first = [[True, False], [True, True]] if second[-1] else [[], []]
    with pytest.raises(ValueError, match="paired seeds and episodes"):
        clustered_difference(first, second)
