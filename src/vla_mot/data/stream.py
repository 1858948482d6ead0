"""The endless stream of training samples: deterministic, resumable at any step, cut by rank and worker.

Position p of the stream belongs to step p // B and to the place p % B of its batch; places belong to shards, shards
draw pieces of datasets (`draws`), and the k-th draw of a piece takes the sample at place k % n of its (k // n)-th
epoch, whose order is a permutation from (seed, epoch, piece). So the whole state is the step; the stream is a function
of (seed, assignment) and of neither ranks nor workers; and p is the global sample index that keys the noise.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby

import numpy as np
import torch
from torch import Tensor

from vla_mot.batch import Batch
from vla_mot.data import assignment
from vla_mot.data.assignment import Assignment, shards_of
from vla_mot.data.draws import Draws
from vla_mot.data.faults import Fault
from vla_mot.data.joining import join
from vla_mot.data.opened import OpenDatasets
from vla_mot.data.recipe import Opened, Recipe
from vla_mot.data.windows import Collate, Windows
from vla_mot.errors import ConfigError, DatasetError

_ATTEMPTS = 100  # draws in place of one that cannot be read, before everything is taken to be broken


@dataclass(frozen=True)
class StreamConfig:
    """What is drawn, and by whom. Pickles, so that worker processes make their own part of it.

    global_batch: samples of all ranks in a step. seed: of the order. rank, world_size: this process's slice.
    skip_broken: whether draws that cannot be read are replaced (and reported) instead of fatal.
    most_open: datasets that a worker holds open at a time.
    """

    recipe: Recipe
    assignment: Assignment
    global_batch: int
    seed: int = 0
    rank: int = 0
    world_size: int = 1
    skip_broken: bool = False
    most_open: int = 256

    def __post_init__(self) -> None:
        if self.global_batch < 1 or self.global_batch % self.world_size:
            raise ConfigError(
                f"the global batch of {self.global_batch} cannot be shared by {self.world_size} ranks; choose a "
                f"positive multiple of {self.world_size}."
            )
        if not 0 <= self.rank < self.world_size:
            raise ConfigError(f"rank must lie in [0, {self.world_size}), got {self.rank}.")

    def owned(self, worker: int, workers: int) -> range:
        """The shards of one of this rank's workers. Raises ConfigError when all workers cannot share them equally."""
        return shards_of(self.rank * workers + worker, self.world_size * workers, len(self.assignment.shards))

    def places(self, step: int, worker: int, workers: int) -> np.ndarray:
        """Places in the batch of a step, ascending, that one of a rank's workers fills. Empty where it rests.

        Raises ConfigError when the shards cannot be shared by all workers of all ranks.
        """
        owned = self.owned(worker, workers)
        shards, batch = len(self.assignment.shards), self.global_batch
        if shards <= batch:
            return np.arange(owned.start * batch // shards, owned.stop * batch // shards)
        turn = shards // batch  # shards that take turns at one place
        served = np.arange(owned.start, owned.stop)
        return served[served % turn == step % turn] // turn


@dataclass(frozen=True)
class Part:
    """What one worker made of one step: its samples in the order of their positions, None where it rested.

    faults: places that it could not read and replaced by others of the same shard.
    """

    batch: Batch | None
    faults: tuple[Fault, ...]


@dataclass(frozen=True)
class _Draw:
    """A sample to be made. position: in the stream. row: of the dataset's training windows; None: not known yet."""

    position: int
    piece: int
    turn: int = 0
    place: float | None = None
    attempt: int = 0


class SampleStream:
    """The part of the stream that one worker of one rank makes."""

    def __init__(self, config: StreamConfig, worker: int = 0, workers: int = 1) -> None:
        self.config, self.worker, self.workers = config, worker, workers
        config.places(0, worker, workers)
        self.draws = Draws(config.assignment, config.global_batch, config.seed)
        self._pieces = config.assignment.pieces_of(config.owned(worker, workers))
        self._datasets: OpenDatasets[Opened] = OpenDatasets(self._open_part, config.most_open)
        self._orders: dict[int, tuple[int, np.ndarray]] = {}
        self._collates = {name: Collate(robot) for name, robot in config.recipe.processors.items()}
        self._broken: dict[int, DatasetError] = {}

    def positions(self, step: int) -> Tensor:
        """Positions in the stream of this worker's samples at a step, `(B,)` int64: their global sample indices."""
        places = self.config.places(step, self.worker, self.workers)
        return torch.from_numpy(step * self.config.global_batch + places)

    def part(self, step: int) -> Part:
        """Make the samples of a step; an error is noted with the step.

        Raises DatasetError when a sample cannot be read and nothing may be skipped.
        """
        positions = self.positions(step).numpy()
        if not len(positions):
            return Part(None, ())
        try:
            windows, faults = self._read(step, positions)
            return Part(self._batch(windows), faults)
        except Exception as error:
            error.add_note(f"while preparing the batch of step {step}")
            raise

    def parts(self, start: int, stop: int | None) -> Iterator[Part]:
        """The parts of steps `start`, `start + 1`, …, up to `stop` (endless if None)."""
        step = start
        while stop is None or step < stop:
            yield self.part(step)
            step += 1

    # ---- reading ----------------------------------------------------------------------------------------------

    def _read(
        self, step: int, positions: np.ndarray
    ) -> tuple[list[tuple[Tensor, Windows]], tuple[Fault, ...]]:
        """(positions, windows) per dataset, and what had to be replaced."""
        pieces, turns = self.draws.at(step, positions - step * self.config.global_batch)
        pending = [
            _Draw(*numbers)
            for numbers in zip(positions.tolist(), pieces.tolist(), turns.tolist(), strict=True)
        ]
        read: list[tuple[Tensor, Windows]] = []
        faults: list[Fault] = []
        while pending:
            again: list[_Draw] = []
            for number, mine in _by_dataset(pending, self.draws):
                found, failed = self._read_dataset(number, mine)
                read += found
                faults += [fault for _, fault in failed]
                again += [self._replaced(draw, fault) for draw, fault in failed]
            pending = again
        return read, tuple({fault.place: fault for fault in faults}.values())

    def _read_dataset(
        self, number: int, draws: Sequence[_Draw]
    ) -> tuple[list[tuple[Tensor, Windows]], list[tuple[_Draw, Fault]]]:
        """Read samples of one dataset at once; one after another where that fails and broken ones may be skipped."""
        try:
            opened = self._open(number)
        except DatasetError as error:
            if not self.config.skip_broken:
                raise
            return [], [(draw, Fault(number, None, _reason(error))) for draw in draws]
        rows = [self._row(draw, len(opened.training)) for draw in draws]
        try:
            return [(_positions(draws), opened.training.__getitems__(rows))], []
        except DatasetError:
            if not self.config.skip_broken:
                raise
        found: list[tuple[Tensor, Windows]] = []
        failed: list[tuple[_Draw, Fault]] = []
        for draw, row in zip(draws, rows, strict=True):
            try:
                found.append((_positions([draw]), opened.training[row]))
            except DatasetError as error:
                failed.append((draw, Fault(number, opened.training.episode(row), _reason(error))))
        return found, failed

    def _open_part(self, number: int) -> Opened:
        """A dataset with no more of its rows than this worker draws from; with all of them where damage may be skipped,
        for what is damaged must not depend on who looks."""
        within = None if self.config.skip_broken else self._pieces[number]
        return self.config.recipe.open(number, within=within)

    def _open(self, number: int) -> Opened:
        """A dataset, opened at its first use. What is broken is tried once."""
        if number in self._broken:
            raise self._broken[number]
        try:
            return self._datasets.get(number)
        except DatasetError as error:
            self._broken[number] = error
            raise

    def _row(self, draw: _Draw, length: int) -> int:
        """The sample of a dataset of `length` training windows that a draw means."""
        rows = assignment.rows(self.draws.pieces[draw.piece], length)
        if draw.place is not None:
            return rows.start + int(draw.place * len(rows))
        epoch, place = divmod(draw.turn, len(rows))
        return rows.start + int(self._order(draw.piece, epoch, len(rows))[place])

    def _order(self, piece: int, epoch: int, length: int) -> np.ndarray:
        """The order of a piece's samples in an epoch; the newest one of every piece is kept, in four bytes a sample."""
        kept = self._orders.get(piece)
        if kept is None or kept[0] != epoch:
            random = np.random.default_rng([self.config.seed, epoch, piece])
            kept = self._orders[piece] = epoch, random.permutation(length).astype(np.uint32)
        return kept[1]

    def _replaced(self, draw: _Draw, fault: Fault) -> _Draw:
        """Another draw of the same shard, for the same position."""
        if draw.attempt == _ATTEMPTS:
            raise DatasetError(
                f"{_ATTEMPTS} samples in a row could not be read, the last one because {fault.reason}"
            )
        piece, place = self.draws.choose_again(draw.piece, draw.position, draw.attempt)
        return _Draw(draw.position, piece, place=place, attempt=draw.attempt + 1)

    # ---- batching ---------------------------------------------------------------------------------------------

    def _batch(self, read: Sequence[tuple[Tensor, Windows]]) -> Batch:
        """Windows of several datasets as one batch, in the order of their positions."""
        recipe = self.config.recipe

        def robot(part: tuple[Tensor, Windows]) -> str:
            return recipe.entries[int(part[1].origin[0, 0])].robot.name

        batches = []
        for name, parts in groupby(sorted(read, key=robot), robot):
            indices, windows = zip(*parts, strict=True)
            index = torch.cat(indices)
            batches.append(self._collates[name](recipe.changed(Windows.joined(windows), index), index))
        whole = join(batches)
        order = whole.index.argsort()
        return whole if bool((order[1:] > order[:-1]).all()) else whole[order]


def _by_dataset(draws: Sequence[_Draw], known: Draws) -> Iterator[tuple[int, list[_Draw]]]:
    """Draws of every dataset, in the order of the datasets, and of the turns within: an epoch ends before the next."""

    def dataset(draw: _Draw) -> int:
        return known.pieces[draw.piece].dataset

    for number, mine in groupby(sorted(draws, key=lambda draw: (dataset(draw), draw.turn)), dataset):
        yield number, list(mine)


def _positions(draws: Sequence[_Draw]) -> Tensor:
    return torch.tensor([draw.position for draw in draws], dtype=torch.int64)


def _reason(error: DatasetError) -> str:
    return " ".join(str(error).split())
