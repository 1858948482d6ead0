"""The exact rule: equal mass to the last bit that matters, equal cost within its bound, and few cuts."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vla_mot.data.assignment import Assignment, assign_exact
from vla_mot.data.balance import SLACK
from vla_mot.data.dealing import GRAIN

MASSES = st.floats(1e-9, 1e6)
COSTS = st.floats(0, 1e9)
DATASETS = st.lists(st.tuples(MASSES, COSTS), min_size=1, max_size=30)
SHARDS = (1, 2, 3, 8, 64, 4096)


def names(count: int) -> list[str]:
    return [f"set{i:05d}" for i in range(count)]


def shared(masses, costs, shards: int) -> Assignment:
    return assign_exact(masses, costs, names(len(masses)), shards)


def drawn(count: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Weights and costs of datasets such as there are: sizes over orders of magnitude, weights of another rule."""
    rng = np.random.default_rng(seed)
    sizes = rng.lognormal(10, 2, count)
    return sizes ** rng.uniform(0.2, 1, count), 2e4 + sizes


def shard_costs(assignment: Assignment, costs) -> np.ndarray:
    return np.array([sum((p.stop - p.start) * costs[p.dataset] for p in s) for s in assignment.shards])


@pytest.mark.parametrize("shards", SHARDS)
@pytest.mark.parametrize("count", [1, 5, 3000])
def test_the_requested_mixture_is_realised(shards, count):
    masses, costs = drawn(count)
    requested = masses / math.fsum(masses)
    realised = shared(masses, costs, shards).realised()
    assert (
        np.abs(realised / requested - 1).max() < 1e-12
    )  # of each dataset's own share, so of the whole as well


@settings(max_examples=200, deadline=None)
@given(DATASETS, st.integers(1, 70))
def test_whatever_is_asked_for_is_realised_and_every_dataset_is_read_once(datasets, shards):
    masses, costs = zip(*datasets, strict=True)
    assignment = shared(masses, costs, shards)
    requested = np.array(masses) / math.fsum(masses)
    assert np.abs(assignment.realised() - requested).max() < 1e-12
    assert np.abs(assignment.realised() / requested - 1).max() < 2e-12
    assert len(assignment.shards) == shards and all(assignment.shards)
    for pieces in assignment.shards:
        assert math.isclose(math.fsum(p.mass for p in pieces), 1 / shards, rel_tol=2e-12)
        assert len({p.dataset for p in pieces}) == len(pieces)
    for dataset in range(len(masses)):
        runs = [p for pieces in assignment.shards for p in pieces if p.dataset == dataset]
        assert runs[0].start == 0 and runs[-1].stop == 1
        assert all(a.stop == b.start for a, b in itertools.pairwise(runs))
        for p in runs:
            assert p.mass > 0
            assert math.isclose(p.stop - p.start, p.mass / requested[dataset], rel_tol=1e-9, abs_tol=1e-15)


@settings(max_examples=200, deadline=None)
@given(DATASETS, st.integers(1, 70))
def test_every_shard_costs_its_share(datasets, shards):
    masses, costs = zip(*datasets, strict=True)
    found = shard_costs(shared(masses, costs, shards), costs)
    fair = math.fsum(costs) / shards
    assert np.abs(found - fair).max() <= (2 * SLACK + 3 / GRAIN + 1e-4) * fair


@settings(max_examples=200, deadline=None)
@given(st.lists(st.tuples(st.floats(1, 4), COSTS), min_size=1, max_size=30), st.integers(8, 70))
def test_large_datasets_cost_every_run_of_shards_its_share(datasets, shards):
    """Where nothing is small enough to be dealt, what one shard has too much the next has too little."""
    masses, costs = zip(*datasets, strict=True)
    fair = math.fsum(costs) / shards
    so_far = np.cumsum(shard_costs(shared(masses, costs, shards), costs))
    assert np.abs(so_far - fair * np.arange(1, shards + 1)).max() <= (SLACK + 1e-4) * fair


@settings(max_examples=100, deadline=None)
@given(DATASETS, st.integers(1, 8), st.integers(1, 8))
def test_few_datasets_are_opened_twice(datasets, workers, each):
    masses, costs = zip(*datasets, strict=True)
    assignment = shared(masses, costs, workers * each)
    assert sum(map(len, assignment.shards)) <= len(masses) + 2 * (workers * each - 1)
    runs = [range(worker * each, (worker + 1) * each) for worker in range(workers)]
    opened = sum(len(assignment.datasets_of(run)) for run in runs)
    assert len(masses) <= opened <= len(masses) + 2 * (workers - 1)


@pytest.mark.parametrize("shards", SHARDS)
def test_thousands_of_datasets_cost_every_shard_the_same(shards):
    masses, costs = drawn(3000)
    found = shard_costs(shared(masses, costs, shards), costs)
    assert np.abs(found / found.mean() - 1).max() <= 2 * SLACK + 0.01


@pytest.mark.parametrize("shards", [2, 8, 64, 512])
def test_every_shard_opens_about_as_many_datasets(shards):
    masses, costs = drawn(3000)
    opened = [len(pieces) for pieces in shared(masses, costs, shards).shards]
    assert max(opened) <= 1.3 * np.mean(opened) + 10


def test_a_shard_pairs_the_light_with_the_dense():
    """Two light and two dense datasets: each of two shards takes one of both, none is cut."""
    assignment = shared([0.25] * 4, [1, 1, 9, 9], 2)
    assert [[p.dataset for p in pieces] for pieces in assignment.shards] == [[0, 3], [1, 2]]


def test_one_dataset_is_cut_evenly():
    pieces = [p for (p,) in shared([3.0], [5.0], 4).shards]
    assert [(p.start, p.stop, p.mass) for p in pieces] == [
        (0, 0.25, 0.25),
        (0.25, 0.5, 0.25),
        (0.5, 0.75, 0.25),
        (0.75, 1, 0.25),
    ]


@pytest.mark.parametrize(("count", "shards"), [(10, 10), (4096, 4096), (3000, 1000), (4, 8), (7, 7 * 512)])
def test_rounded_numbers_leave_no_slivers(count, shards):
    """0.1 is not a tenth: sums of such masses miss a shard's end by a hair, which must not become a piece."""
    masses = [1 / 7 / count if i % 3 else 2.5 / 7 / count for i in range(count)] if count == 3000 else None
    masses = masses or [1 / count] * count
    pieces = [p for s in shared(masses, masses, shards).shards for p in s]
    assert min(p.mass for p in pieces) * shards > 1e-3
    assert len(pieces) <= count + shards


def test_a_weight_of_seven_tenths_fills_seven_of_ten_shards():
    assignment = shared([0.7, 0.1, 0.1, 0.1], [7, 1, 1, 1], 10)
    assert all(len(pieces) == 1 for pieces in assignment.shards)


def test_a_cut_is_saved_where_the_cost_allows():
    masses, costs = [0.25] * 4, [1, 1.01, 1.01, 1]
    assert all(len(pieces) == 1 for pieces in shared(masses, costs, 4).shards)
    assert any(len(pieces) > 1 for pieces in shared(masses, [1, 2, 2, 1], 4).shards)


def test_what_costs_much_and_weighs_little_is_shared_out():
    assignment = shared([1e-12, 1.0], [90.0, 10.0], 5)
    np.testing.assert_allclose(shard_costs(assignment, [90.0, 10.0]), 20, rtol=2 * SLACK + 1e-4)
    assert all(0 in {p.dataset for p in pieces} for pieces in assignment.shards[:-1])


def test_without_costs_the_mass_alone_decides():
    assert sum(map(len, shared([1, 2, 3], [0, 0, 0], 4).shards)) <= 6
