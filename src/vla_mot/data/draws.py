"""What every position of the stream draws: a piece of the assignment, and for the how-manieth time.

A shard's n-th draw is a function of (seed, shard, n) alone, so nothing has to be saved: whoever asks for a later draw
counts the earlier ones, in blocks, which takes about a second for ten million of them.

Legend: `P` pieces, `n` draws.
"""

from collections.abc import Sequence

import numpy as np
import torch

from vla_mot.data.assignment import Assignment, Piece, position_shards
from vla_mot.keyed import keyed_uniform

_STREAM = 21  # of `keyed_uniform`, for the choice of a piece
_BLOCK = 2**18  # draws that are counted at once


class Draws:
    """Pieces and turns of the positions of a global batch.

    assignment: shards and their pieces; global_batch: positions per step; seed: of the choice.
    Raises ConfigError when the shards do not divide the batch, nor the batch the shards.
    """

    def __init__(self, assignment: Assignment, global_batch: int, seed: int) -> None:
        self._batch = global_batch
        self._count = len(assignment.shards)
        self.pieces: tuple[Piece, ...] = tuple(piece for shard in assignment.shards for piece in shard)
        firsts = np.cumsum([0, *(len(shard) for shard in assignment.shards)])
        self._shards = [
            _Shard(number, int(first), [piece.mass for piece in shard], seed)
            for number, (first, shard) in enumerate(zip(firsts[:-1], assignment.shards, strict=True))
        ]
        self.at(0, np.arange(0))

    def at(self, step: int, places: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Piece and turn, `(n,)` int64 each, of the given places (0 … global batch − 1) of a step.

        Places must hold all those of a shard or none: workers own whole shards.
        """
        shards, counters = position_shards(step, places, self._batch, self._count)
        pieces, turns = np.empty_like(counters), np.empty_like(counters)
        for number in np.unique(shards):
            mine = np.flatnonzero(shards == number)
            mine = mine[np.argsort(counters[mine], kind="stable")]
            first = int(counters[mine[0]])
            pieces[mine], turns[mine] = self._shards[number].run(first, len(mine))
        return pieces, turns

    def choose_again(self, piece: int, position: int, attempt: int) -> tuple[int, float]:
        """Another piece of the same shard, and a place in it in [0, 1), for a draw that cannot be read."""
        shard = next(shard for shard in self._shards if shard.first <= piece < shard.first + shard.size)
        return shard.again(position, attempt)


class _Shard:
    """The draws of one shard. first: the number of its first piece; masses: of its pieces."""

    def __init__(self, number: int, first: int, masses: Sequence[float], seed: int) -> None:
        self.first, self.size = first, len(masses)
        self._number, self._seed = number, seed
        edges = np.cumsum(np.asarray(masses, dtype=np.float64))
        self._edges = edges / edges[-1]  # the last one is exactly 1, the largest number that is drawn
        self._done = 0
        self._turns = np.zeros(self.size, dtype=np.int64)

    def run(self, first: int, count: int) -> tuple[np.ndarray, np.ndarray]:
        """Pieces and turns of the draws `first` … `first + count − 1`."""
        self._go_to(first)
        chosen = self._choose(np.arange(first, first + count))
        turns = np.empty(count, dtype=np.int64)
        for piece in np.unique(chosen):
            mine = np.flatnonzero(chosen == piece)
            turns[mine] = self._turns[piece] + np.arange(len(mine))
            self._turns[piece] += len(mine)
        self._done = first + count
        return self.first + chosen, turns

    def again(self, position: int, attempt: int) -> tuple[int, float]:
        """A piece and a place in it, keyed by the stream's position."""
        index = torch.tensor([position], dtype=torch.int64)
        which, where = keyed_uniform(self._seed, attempt, _STREAM + 1, index, 2)[0].tolist()
        return self.first + int(np.searchsorted(self._edges, which)), min(where, 1 - 2.0**-53)

    def _go_to(self, draw: int) -> None:
        if draw < self._done:
            self._done, self._turns = 0, np.zeros(self.size, dtype=np.int64)
        while self._done < draw:
            block = np.arange(self._done, min(draw, self._done + _BLOCK))
            self._turns += np.bincount(self._choose(block), minlength=self.size)
            self._done = int(block[-1]) + 1

    def _choose(self, draws: np.ndarray) -> np.ndarray:
        """The piece of every draw, counted within the shard."""
        if self.size == 1:
            return np.zeros(len(draws), dtype=np.int64)
        level = keyed_uniform(self._seed, self._number, _STREAM, torch.from_numpy(draws), 1)[:, 0]
        return np.searchsorted(self._edges, level.numpy())
