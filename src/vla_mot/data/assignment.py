"""Which part of the stream reads which part of which dataset.

The stream of samples is cut into V equal *shards* (`data.shards`), and ranks × data workers each own a run of them. So
what a shard holds, and in which order it is drawn, does not depend on how many processes there are. A shard gives 1/V
of all samples whatever it holds: sampling by weight within shards that were balanced by size realises another mixture
than was asked for. Two rules:

- `assign_exact` cuts by probability mass. Every shard gets exactly 1/V of it, so the realised mixture is the requested
  one, and an equal share of the cost as well.
- `assign_lpt` is the paper's: whole datasets, the largest first, each to the least-loaded worker.

Pure functions: no file is opened here. Both follow the datasets' names, never the order in which they come.

Legend: `D` datasets, `V` shards.
"""

import hashlib
import heapq
import math
import struct
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from vla_mot.data.balance import share_out
from vla_mot.errors import ConfigError


@dataclass(frozen=True)
class Piece:
    """A run of a dataset's training frames: `[start, stop)` as fractions of them. See `rows` for the frames.

    dataset: its place in the lists that were assigned. mass: its probability in the whole stream, above 0.
    """

    dataset: int
    start: float
    stop: float
    mass: float


def rows(piece: Piece, frames: int) -> range:
    """The piece's rows among the dataset's `frames` training frames.

    Pieces that meet share no row and leave none out; an episode that a cut falls into is read by both sides, each
    for its own frames. A piece that is thinner than a frame gets one: then shards share it, each with draws of its own.
    """
    start, stop = round(piece.start * frames), round(piece.stop * frames)
    if start < stop:
        return range(start, stop)
    only = min(start, frames - 1)
    return range(only, only + 1)


def hull(pieces: Iterable[Piece], frames: int) -> range:
    """From the first to the last of the rows of several pieces, at least one, of one dataset."""
    found = [rows(piece, frames) for piece in pieces]
    return range(min(part.start for part in found), max(part.stop for part in found))


@dataclass(frozen=True)
class Assignment:
    """What each of the V shards draws: one of its pieces in proportion to their masses, then a row of that piece."""

    shards: tuple[tuple[Piece, ...], ...]

    @cached_property
    def digest(self) -> str:
        """Hash of every piece of every shard, bit by bit."""
        digest = hashlib.blake2b(digest_size=16)
        for pieces in self.shards:
            digest.update(struct.pack("<q", len(pieces)))
            for piece in pieces:
                digest.update(struct.pack("<qddd", piece.dataset, piece.start, piece.stop, piece.mass))
        return digest.hexdigest()

    def realised(self) -> np.ndarray:
        """The mixture that comes out, `(D,)` float64: expected, over all shards, sum 1."""
        parts: dict[int, list[float]] = {}
        for pieces in self.shards:
            whole = math.fsum(piece.mass for piece in pieces) * len(self.shards)
            for piece in pieces:
                parts.setdefault(piece.dataset, []).append(piece.mass / whole)
        return np.array([math.fsum(parts.get(dataset, ())) for dataset in range(max(parts) + 1)])

    def datasets_of(self, shards: Iterable[int]) -> tuple[int, ...]:
        """The datasets that these shards read, ascending."""
        return tuple(sorted({piece.dataset for shard in shards for piece in self.shards[shard]}))

    def pieces_of(self, shards: Iterable[int]) -> dict[int, tuple[Piece, ...]]:
        """What these shards read of each dataset, in the order of the shards."""
        found: dict[int, list[Piece]] = {}
        for shard in shards:
            for piece in self.shards[shard]:
                found.setdefault(piece.dataset, []).append(piece)
        return {dataset: tuple(pieces) for dataset, pieces in found.items()}

    def spans(self, shards: Iterable[int]) -> dict[int, tuple[tuple[float, float], ...]]:
        """What these shards read of each dataset: disjoint `[start, stop)`, ascending, joined where they meet."""
        return {dataset: _joined(pieces) for dataset, pieces in sorted(self.pieces_of(shards).items())}


def _joined(pieces: Sequence[Piece]) -> tuple[tuple[float, float], ...]:
    spans: list[tuple[float, float]] = []
    for piece in sorted(pieces, key=lambda piece: piece.start):
        joined = bool(spans) and piece.start <= spans[-1][1]
        start, stop = spans.pop() if joined else (piece.start, piece.stop)
        spans.append((start, max(stop, piece.stop)))
    return tuple(spans)


def assign_exact(
    masses: Sequence[float], costs: Sequence[float], names: Sequence[str], shards: int
) -> Assignment:
    """Cut the datasets so that every shard has 1/V of the probability, and of the cost as near as `balance` says.

    masses: `(D,)` weights above 0, of any sum. costs: `(D,)` what holding a whole dataset costs, e.g. bytes; a piece is
    taken to cost in proportion. A dataset's pieces follow each other from 0 to 1 in the order of the shards, and there
    are at most D + 2(V − 1): runs of shards that are shared by W workers open at most D + 2(W − 1) datasets in all.
    Raises ConfigError for a mass that is not positive, a negative cost, a name twice, or no shard.
    """
    masses, costs = _numbers(masses), _numbers(costs)
    _check(names, shards, masses=masses, costs=costs)
    units, shares = share_out(masses, costs, names, shards)
    done, total = [0] * len(names), sum(units)
    whole = []
    for amounts in shares:
        pieces = []
        for dataset, amount in amounts.items():
            start, done[dataset] = done[dataset], done[dataset] + amount
            pieces.append(
                Piece(dataset, start / units[dataset], done[dataset] / units[dataset], amount / total)
            )
        whole.append(tuple(pieces))
    return Assignment(tuple(whole))


def assign_lpt(
    sizes: Sequence[float], masses: Sequence[float], names: Sequence[str], shards: int
) -> Assignment:
    """The paper's rule: whole datasets by descending size (ties by name), each to the first least-loaded shard.

    sizes: `(D,)` above 0, e.g. frames. With fewer datasets than shards, each shard that is left empty gets a copy of
    the dataset with the greatest size per copy (ties by name), drawn independently. Every dataset is in some shard and
    every shard holds one, but `realised()` is not what was asked for. Raises ConfigError like `assign_exact`.
    """
    masses, sizes = _numbers(masses), _numbers(sizes)
    _check(names, shards, masses=masses, sizes=sizes)
    order = sorted(range(len(names)), key=lambda i: (-sizes[i], names[i]))
    holders = _least_loaded(sizes, order, shards)
    _replicate(sizes, order, holders, shards)
    total = math.fsum(masses)
    found: list[list[Piece]] = [[] for _ in range(shards)]
    for i in order:
        for shard in holders[i]:
            found[shard].append(Piece(i, 0.0, 1.0, masses[i] / total / len(holders[i])))
    return Assignment(tuple(map(tuple, found)))


def _least_loaded(sizes: Sequence[float], order: Sequence[int], shards: int) -> dict[int, list[int]]:
    """The shard of each dataset, as a list of one."""
    loads = [(0.0, shard) for shard in range(shards)]
    holders: dict[int, list[int]] = {}
    for i in order:
        load, shard = loads[0]
        heapq.heapreplace(loads, (load + sizes[i], shard))
        holders[i] = [shard]
    return holders


def _replicate(
    sizes: Sequence[float], order: Sequence[int], holders: dict[int, list[int]], shards: int
) -> None:
    """Give a copy to every shard beyond the D-th, which the first round left empty."""
    heaviest = [(-sizes[i], rank) for rank, i in enumerate(order)]
    heapq.heapify(heaviest)
    for shard in range(len(order), shards):
        rank = heaviest[0][1]
        copies = holders[order[rank]]
        copies.append(shard)
        heapq.heapreplace(heaviest, (-sizes[order[rank]] / len(copies), rank))


def shards_of(worker: int, workers: int, shards: int) -> range:
    """The consecutive shards of one worker among all ranks' workers.

    Raises ConfigError when the workers cannot have equally many.
    """
    if shards % workers:
        near = _neighbours(workers, lambda number: shards % number == 0, shards)
        more = math.ceil(shards / workers) * workers
        raise ConfigError(
            f"data.shards={shards} cannot be shared evenly by {workers} workers (ranks × data workers of each). Run "
            f"with {near} workers, or start a new run with data.shards={more}."
        )
    assert 0 <= worker < workers, f"worker {worker} of {workers}"
    each = shards // workers
    return range(worker * each, (worker + 1) * each)


def position_shards(
    step: int, positions: np.ndarray, batch: int, shards: int
) -> tuple[np.ndarray, np.ndarray]:
    """Which shard each position of a global batch belongs to, and the how-manieth draw of that shard it is.

    step: of training, from 0. positions: int64 within the batch, 0 … batch − 1, of any shape; the results have it too.
    A rank's slice of the batch, and a worker's share of that, touch only their own shards.
    Raises ConfigError when neither of batch and shards divides the other.
    """
    positions = np.asarray(positions, dtype=np.int64)
    if batch % shards == 0:
        each = batch // shards
        return positions // each, step * each + positions % each
    if shards % batch == 0:
        turns = shards // batch
        return positions * turns + step % turns, np.full_like(positions, step // turns)
    near = _neighbours(shards, lambda number: batch % number == 0 or number % batch == 0, shards + batch)
    raise ConfigError(
        f"a global batch of {batch} and data.shards={shards} do not divide each other, so that some shards would give "
        f"more samples than others; set data.shards to {near}, or change the batch size."
    )


def _neighbours(wanted: int, fits: Callable[[int], bool], most: int) -> str:
    """The nearest numbers up to `most` that fit, below and above, in words."""
    below = next((n for n in range(wanted - 1, 0, -1) if fits(n)), None)
    above = next((n for n in range(wanted + 1, most + 1) if fits(n)), None)
    return " or ".join(str(number) for number in (below, above) if number is not None)


def _numbers(values: Iterable[float]) -> list[float]:
    """Of numpy or not, signed or not: plain floats, in which every frame count is exact."""
    return [float(value) for value in values]


def _check(names: Sequence[str], shards: int, masses: Sequence[float], **loads: Sequence[float]) -> None:
    if shards < 1:
        raise ConfigError(f"data.shards must be at least 1, got {shards}.")
    if not names:
        raise ConfigError("there is no dataset to assign: the mixture is empty.")
    if repeated := sorted(name for name, times in Counter(names).items() if times > 1):
        raise ConfigError(
            f"dataset {repeated[0]!r} is listed twice; names decide ties, so each needs its own."
        )
    for kind, values in {"masses": masses, **loads}.items():
        if len(values) != len(names):
            raise ConfigError(f"{len(names)} datasets need as many {kind}, got {len(values)}.")
        for name, value in zip(names, values, strict=True):
            if not (math.isfinite(value) and (value > 0 or (kind == "costs" and value == 0))):
                raise ConfigError(
                    f"dataset {name!r} has {_ONE[kind]} {value}; it must be "
                    f"{'at least' if kind == 'costs' else 'above'} 0. {_MEND[kind]}"
                )


_ONE = {"masses": "the weight", "costs": "the cost", "sizes": "the size"}
_MEND = {
    "masses": "Give it a positive weight in the mixture, or leave it out.",
    "costs": "Fix its number of frames.",
    "sizes": "Leave an empty dataset out of the mixture.",
}
