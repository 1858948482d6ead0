"""What the stream really draws: the mixture as asked for, whoever draws it, from any step on."""

import math

import numpy as np
import pytest

from vla_mot.data.assignment import assign_exact
from vla_mot.data.draws import Draws

WEIGHTS = np.array([0.4, 0.25, 0.15, 0.1, 0.05, 0.03, 0.015, 0.005])
FRAMES = [900, 50_000, 300, 7_000, 120, 40, 9_000, 10]
MILLION = 1_000_000


def draws(shards: int, batch: int, seed: int = 0) -> Draws:
    names = [f"dataset {number}" for number in range(len(WEIGHTS))]
    return Draws(assign_exact(WEIGHTS, FRAMES, names, shards), batch, seed)


@pytest.mark.parametrize("ranks", [1, 2, 3, 8, 64])
def test_a_million_draws_stay_within_four_standard_deviations(ranks):
    shards, per_rank = ranks, 20_000 // ranks
    batch = per_rank * ranks
    steps = math.ceil(MILLION / batch)
    counts = np.zeros(len(WEIGHTS), dtype=np.int64)
    for rank in range(ranks):  # every rank draws its own slice of every batch
        made = draws(shards, batch)
        owner = np.array([piece.dataset for piece in made.pieces])
        for step in range(steps):
            pieces, _ = made.at(step, np.arange(rank * per_rank, (rank + 1) * per_rank))
            counts += np.bincount(owner[pieces], minlength=len(WEIGHTS))
    total = counts.sum()
    deviation = np.sqrt(total * WEIGHTS * (1 - WEIGHTS))
    assert total >= MILLION
    assert (np.abs(counts - total * WEIGHTS) < 4 * deviation).all(), counts / total - WEIGHTS


@pytest.mark.parametrize(("shards", "batch"), [(1, 6), (3, 6), (6, 6), (12, 6)])
def test_turns_of_a_piece_count_up_without_a_gap(shards, batch):
    made = draws(shards, batch)
    seen: dict[int, list[int]] = {}
    for step in range(200):
        pieces, turns = made.at(step, np.arange(batch))
        for piece, turn in zip(pieces.tolist(), turns.tolist(), strict=True):
            seen.setdefault(piece, []).append(turn)
    assert sum(map(len, seen.values())) == 200 * batch
    assert all(turns == list(range(len(turns))) for turns in seen.values())


def test_a_later_step_does_not_depend_on_how_it_was_reached():
    walked, jumped = draws(4, 8), draws(4, 8)
    for step in range(50):
        walked.at(step, np.arange(8))
    for step in (50, 7, 50):
        there, here = draws(4, 8).at(step, np.arange(8)), jumped.at(step, np.arange(8))
        assert all(np.array_equal(a, b) for a, b in zip(there, here, strict=True))
    assert np.array_equal(walked.at(50, np.arange(8))[1], jumped.at(50, np.arange(8))[1])


def test_a_far_step_is_reached_by_counting():
    """As if one had drawn two million samples one by one: the counts of the pieces say so."""
    made = draws(2, 1000)
    pieces, turns = made.at(2000, np.arange(1000))
    slow = draws(2, 1000)
    counts = np.zeros(len(slow.pieces), dtype=np.int64)
    for step in range(2000):
        counts += np.bincount(slow.at(step, np.arange(1000))[0], minlength=len(counts))
    first = {int(piece): int(turns[pieces == piece].min()) for piece in np.unique(pieces)}
    assert first == {piece: int(counts[piece]) for piece in first}


def test_workers_draw_different_streams():
    """Two shards that hold equal pieces of one dataset still choose on their own."""
    names = ["a", "b"]
    made = Draws(assign_exact([0.5, 0.5], [1, 1], names, 1), 64, 0)
    other = Draws(assign_exact([0.5, 0.5], [1, 1], names, 1), 64, 1)
    assert not np.array_equal(made.at(0, np.arange(64))[0], other.at(0, np.arange(64))[0])
    two = Draws(assign_exact([0.1] * 10, [1] * 10, list("abcdefghij"), 2), 64, 0)
    pieces, _ = two.at(0, np.arange(64))
    halves = [np.searchsorted(np.unique(half), half) for half in (pieces[:32], pieces[32:])]
    assert not np.array_equal(*halves)


def test_a_draw_that_cannot_be_read_is_replaced_within_its_shard():
    made = draws(4, 8)
    shards = np.repeat(np.arange(4), [len(shard) for shard in _shards()])
    for piece in range(len(made.pieces)):
        again, place = made.choose_again(piece, position=11, attempt=0)
        assert shards[again] == shards[piece] and 0 <= place < 1
        assert made.choose_again(piece, 11, 0) == (again, place)
    places = {made.choose_again(0, 11, attempt)[1] for attempt in range(20)}
    assert len(places) == 20


def _shards():
    names = [f"dataset {number}" for number in range(len(WEIGHTS))]
    return assign_exact(WEIGHTS, FRAMES, names, 4).shards
