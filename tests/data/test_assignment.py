import itertools
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from vla_mot.data.assignment import (
    Assignment,
    Piece,
    assign_exact,
    assign_lpt,
    hull,
    position_shards,
    rows,
    shards_of,
)
from vla_mot.errors import ConfigError
from vla_mot.keyed import keyed_uniform

RULES = [assign_exact, assign_lpt]
RANKS = (1, 2, 3, 8, 64)
SHARDS, BATCH, STEPS = 192, 384, 2605  # 1,000,320 draws
RNG = np.random.default_rng(7)
SIZES = np.ceil(RNG.lognormal(9, 1.5, 250))
MASSES = np.array([0.4, *(0.6 * SIZES[1:] ** 0.5 / (SIZES[1:] ** 0.5).sum())])  # one of 250 weighs 40 %
NAMES = [f"set{i:03d}" for i in range(250)]


def draws(assignment: Assignment, rank: int, ranks: int) -> np.ndarray:
    """`(STEPS, B)` datasets that one rank draws, opening nothing but its own shards."""
    places = np.arange(BATCH).reshape(ranks, -1)[rank]
    steps = np.arange(STEPS)
    index = torch.from_numpy(steps[:, None] * BATCH + places)
    uniform = keyed_uniform(0, 0, 99, index.flatten(), 1).reshape(index.shape).numpy()
    found = np.full(uniform.shape, -1)
    shard = position_shards(0, places, BATCH, len(assignment.shards))[0]
    for own in shards_of(rank, ranks, len(assignment.shards)):
        pieces = assignment.shards[own]
        edges = np.cumsum([piece.mass for piece in pieces])
        chosen = np.searchsorted(edges[:-1] / edges[-1], uniform[:, shard == own])
        found[:, shard == own] = np.array([piece.dataset for piece in pieces])[chosen]
    return found


def deviations(found: np.ndarray) -> np.ndarray:
    """How many standard deviations of independent draws each dataset's count is off."""
    count = np.bincount(found.flatten(), minlength=len(MASSES))
    return (count - found.size * MASSES) / np.sqrt(found.size * MASSES * (1 - MASSES))


@pytest.fixture(scope="module")
def exact() -> Assignment:
    return assign_exact(MASSES, SIZES, NAMES, SHARDS)


@pytest.fixture(scope="module")
def alone(exact) -> np.ndarray:
    return draws(exact, 0, 1)


@pytest.mark.parametrize("ranks", RANKS)
def test_a_million_draws_have_the_requested_mixture_on_any_number_of_ranks(exact, alone, ranks):
    together = np.concatenate([draws(exact, rank, ranks) for rank in range(ranks)], axis=1)
    assert together.size > 1e6 and together.min() >= 0
    assert np.abs(deviations(together)).max() < 4
    assert np.array_equal(together, alone), "and they are the same draws"


@pytest.mark.parametrize("ranks", RANKS[1:])
def test_a_million_draws_within_shards_balanced_by_size_do_not(ranks):
    lpt = assign_lpt(SIZES, MASSES, NAMES, ranks)
    together = np.concatenate([draws(lpt, rank, ranks) for rank in range(ranks)], axis=1)
    assert np.abs(deviations(together)).max() > 8


def test_the_trap_by_hand():
    """Weights .7/.1/.1/.1 on two workers; by size the first sits with the third: .7/.8 and .1/.8 of one half."""
    lpt = assign_lpt([4, 5, 3, 2], [0.7, 0.1, 0.1, 0.1], "abcd", 2)
    assert [lpt.datasets_of([worker]) for worker in range(2)] == [(1, 3), (0, 2)]
    np.testing.assert_allclose(lpt.realised(), [0.4375, 0.25, 0.0625, 0.25], atol=1e-15)


def test_lpt_by_hand():
    """7, 6, 5, 4, 3 on two workers: 7 | 6, then 5 joins 6, 4 joins 7, and 3 finds 11 on both: the first."""
    lpt = assign_lpt([5, 7, 3, 6, 4], [1] * 5, ["e5", "e7", "e3", "e6", "e4"], 2)
    assert [lpt.datasets_of([worker]) for worker in range(2)] == [(1, 2, 4), (0, 3)]
    assert [[p.dataset for p in pieces] for pieces in lpt.shards] == [[1, 4, 2], [3, 0]]


def test_equal_sizes_are_told_apart_by_name():
    lpt = assign_lpt([5, 5, 5], [1, 1, 1], ["c", "a", "b"], 2)
    assert [[p.dataset for p in pieces] for pieces in lpt.shards] == [[1, 0], [2]]


def test_empty_workers_get_copies_of_what_is_largest_per_copy():
    """9 and 4 on five workers: 9 twice is 4.5 each, three times 3; then 4 is the larger."""
    lpt = assign_lpt([4, 9], [0.2, 0.8], ["small", "large"], 5)
    assert [[p.dataset for p in pieces] for pieces in lpt.shards] == [[1], [0], [1], [1], [0]]
    assert [pieces[0] for pieces in lpt.shards[:2]] == [Piece(1, 0, 1, 0.8 / 3), Piece(0, 0, 1, 0.1)]


@settings(max_examples=150, deadline=None)
@given(st.lists(st.integers(1, 40), min_size=1, max_size=7), st.integers(1, 3))
def test_lpt_is_near_the_best(sizes, workers):
    lpt = assign_lpt(sizes, [1] * len(sizes), NAMES[: len(sizes)], workers)
    if len(sizes) < workers:
        return
    loads = [sum(sizes[p.dataset] for p in pieces) for pieces in lpt.shards]
    choices = itertools.product(range(workers), repeat=len(sizes))
    best = min(max(np.bincount(c, weights=sizes, minlength=workers)) for c in choices)
    assert max(loads) <= (4 / 3 - 1 / (3 * workers)) * best + 1e-9


@settings(max_examples=100, deadline=None)
@given(st.lists(st.integers(1, 50), min_size=1, max_size=20), st.integers(1, 30))
def test_lpt_covers_every_dataset_and_every_worker(sizes, workers):
    lpt = assign_lpt(sizes, sizes, NAMES[: len(sizes)], workers)
    assert lpt.datasets_of(range(workers)) == tuple(range(len(sizes)))
    assert all(lpt.shards)
    copies = np.bincount([p.dataset for pieces in lpt.shards for p in pieces])
    assert copies.sum() == max(len(sizes), workers)
    masses = [sum(p.mass for s in lpt.shards for p in s if p.dataset == i) for i in range(len(sizes))]
    np.testing.assert_allclose(masses, np.array(sizes) / sum(sizes), rtol=1e-12)


@pytest.mark.parametrize("rule", RULES)
def test_the_order_in_which_datasets_come_does_not_matter(rule):
    numbers = np.random.default_rng(3)
    masses, sizes = numbers.choice([0.1, 0.25, 1.0], 40), numbers.integers(1, 5, 40)
    first, other = (sizes, masses), (masses, sizes)
    here = first if rule is assign_lpt else other
    order = numbers.permutation(40)
    plain = rule(*here, NAMES[:40], 16)
    mixed = rule(*(values[order] for values in here), [NAMES[i] for i in order], 16)
    renamed = tuple(tuple(replace(p, dataset=int(order[p.dataset])) for p in s) for s in mixed.shards)
    assert renamed == plain.shards
    assert rule(*here, NAMES[:40], 16).digest == plain.digest != mixed.digest


def test_the_digest_is_the_same_everywhere():
    one = Assignment(((Piece(0, 0.0, 0.5, 0.25), Piece(1, 0.0, 1.0, 0.25)), (Piece(0, 0.5, 1.0, 0.5),)))
    assert one.digest == "612389f3d82a6b8b2962ec91eb01bd14"
    moved = Assignment(((one.shards[0][0],), (one.shards[0][1], one.shards[1][0])))
    assert moved.digest != one.digest


def test_what_a_worker_reads_is_joined_where_pieces_meet():
    parts = [Piece(0, a, b, 0.1) for a, b in itertools.pairwise((0.0, 0.2, 0.3, 0.6, 1.0))]
    one = Assignment(((parts[0],), (parts[1], Piece(2, 0, 1, 0.1)), (parts[2],), (parts[3],)))
    assert one.spans([1, 0]) == {0: ((0.0, 0.3),), 2: ((0, 1),)}
    assert one.spans([0, 1, 3]) == {0: ((0.0, 0.3), (0.6, 1.0)), 2: ((0, 1),)}
    copies = Assignment(((Piece(0, 0, 1, 0.5),), (Piece(0, 0, 1, 0.5),)))
    assert copies.spans(range(2)) == {0: ((0, 1),)}


@pytest.mark.parametrize("frames", [1, 2, 10, 999_983])
def test_pieces_share_no_row_and_leave_none_out(frames):
    cuts = [0, 1 / 7, 1 / 3, 0.5, 0.50000001, 2 / 3, 1]
    ranges = [rows(Piece(0, a, b, 1), frames) for a, b in itertools.pairwise(cuts)]
    assert all(found and found[0] >= 0 and found[-1] < frames for found in ranges)
    wide = [row for found in ranges if len(found) > 1 for row in found]
    assert len(set(wide)) == len(wide)
    assert {row for found in ranges for row in found} == set(range(frames))


def test_a_piece_thinner_than_a_frame_gets_one():
    assert rows(Piece(0, 0.51, 0.52, 1), 10) == range(5, 6)
    assert rows(Piece(0, 0.99, 1.0, 1), 10) == range(9, 10)


def test_the_hull_of_pieces_has_the_rows_of_each():
    pieces = [Piece(0, 0.0, 0.5, 1.0), Piece(0, 0.5, 0.5001, 1.0)]
    assert hull(pieces, 10) == range(0, 6)  # the thin one has a row of its own behind the other's
    assert hull(pieces[1:], 10) == range(5, 6)
    assert hull([Piece(0, 0.9, 1.0, 1.0), Piece(0, 0.1, 0.2, 1.0)], 10) == range(1, 10)


def test_the_pieces_of_shards_come_by_dataset(exact):
    found = exact.pieces_of(range(3, 9))
    assert tuple(sorted(found)) == exact.datasets_of(range(3, 9))
    assert all(piece.dataset == dataset for dataset, pieces in found.items() for piece in pieces)
    assert sum(map(len, found.values())) == sum(len(exact.shards[shard]) for shard in range(3, 9))


@pytest.mark.parametrize(("batch", "shards"), [(64, 64), (384, 192), (192, 384), (512, 4096), (24, 1)])
def test_every_shard_gives_equally_many_and_counts_its_draws(batch, shards):
    steps = 2 * max(1, shards // batch)
    found = [position_shards(step, np.arange(batch), batch, shards) for step in range(steps)]
    for shard in range(shards):
        counters = np.concatenate([c[s == shard] for s, c in found])
        assert counters.tolist() == list(range(batch * steps // shards)), "each draw once, in order"


@pytest.mark.parametrize("ranks", RANKS)
@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize(("batch", "shards"), [(768, 384), (384, 384), (384, 768)])
def test_ranks_and_workers_touch_only_their_own_shards(ranks, workers, batch, shards):
    for step in range(3):
        for rank, places in enumerate(np.arange(batch).reshape(ranks, -1)):
            shard, _ = position_shards(step, places, batch, shards)
            own = [shards_of(rank * workers + w, ranks * workers, shards) for w in range(workers)]
            assert set(shard.tolist()) <= {s for each in own for s in each}
            assert own[0].start == rank * shards // ranks and own[-1].stop == (rank + 1) * shards // ranks


def test_a_position_is_told_its_shard_alone_or_among_others():
    shard, counter = position_shards(5, np.array([[3, 0], [7, 2]]), 8, 32)
    assert shard.tolist() == [[13, 1], [29, 9]] and counter.tolist() == [[1, 1], [1, 1]]


def test_numbers_that_do_not_divide_are_refused():
    with pytest.raises(
        ConfigError, match=r"data\.shards=64 .* by 48 workers .* with 32 or 64 .* data\.shards=96"
    ):
        shards_of(0, 48, 64)
    with pytest.raises(ConfigError, match=r"batch of 96 and data\.shards=64 .* set data\.shards to 48 or 96"):
        position_shards(0, np.arange(96), 96, 64)


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize(
    ("masses", "loads", "names", "shards", "message"),
    [
        ([1, 0], [1, 1], ["a", "b"], 2, "dataset 'b' has the weight 0.0; it must be above 0"),
        ([1, math.nan], [1, 1], ["a", "b"], 2, "dataset 'b' has the weight nan"),
        (
            [1, 1],
            [1, -1],
            ["a", "b"],
            2,
            "dataset 'b' has the (cost|size) -1.0; it must be (at least|above) 0",
        ),
        ([1, 1], [1], ["a", "b"], 2, "2 datasets need as many (costs|sizes), got 1"),
        ([1, 1], [1, 1], ["a", "a"], 2, "'a' is listed twice"),
        ([], [], [], 2, "the mixture is empty"),
        ([1], [1], ["a"], 0, "data.shards must be at least 1, got 0"),
    ],
)
def test_what_cannot_be_assigned_is_refused(rule, masses, loads, names, shards, message):
    first = (loads, masses) if rule is assign_lpt else (masses, loads)
    with pytest.raises(ConfigError, match=message):
        rule(*first, names, shards)
