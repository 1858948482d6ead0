"""The endless stream of training batches: deterministic, resumable at any step, sliced by rank.

The order is a function of (seed, number of samples) alone. Position p of the stream belongs to epoch p // n, whose
order is a permutation from (seed, epoch); the batch of a step covers `global_batch` consecutive positions. So the whole
state is the step, two ranks together see exactly what one would, and p is the global sample index that keys the noise.
"""

import queue
import threading
from collections.abc import Callable, Iterator
from functools import lru_cache
from itertools import count

import numpy as np
import torch
from torch import Tensor

from vla_mot.batch import Batch
from vla_mot.data.windows import WindowDataset, Windows
from vla_mot.errors import ConfigError


class BatchStream:
    """Batches of one rank.

    dataset: the windows. collate: (windows, global sample indices) → `Batch`. global_batch: samples of all ranks in
    a step. rank, world_size: this process's slice of it.
    Raises ConfigError when the ranks cannot share the batch evenly.
    """

    def __init__(
        self,
        dataset: WindowDataset,
        collate: Callable[[Windows, Tensor], Batch],
        global_batch: int,
        seed: int = 0,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        if global_batch < 1 or global_batch % world_size:
            raise ConfigError(
                f"the global batch of {global_batch} cannot be shared by {world_size} ranks; choose a positive "
                f"multiple of {world_size}."
            )
        if not 0 <= rank < world_size:
            raise ConfigError(f"rank must lie in [0, {world_size}), got {rank}.")
        self.dataset, self.collate = dataset, collate
        self.global_batch, self.local_batch = global_batch, global_batch // world_size
        self.seed, self.rank, self.world_size = seed, rank, world_size
        self._order = lru_cache(maxsize=2)(self._permutation)

    def positions(self, step: int) -> Tensor:
        """Positions in the stream of this rank's samples at a step, `(B,)` int64: their global sample indices."""
        start = step * self.global_batch + self.rank * self.local_batch
        return torch.arange(start, start + self.local_batch)

    def samples(self, step: int) -> Tensor:
        """Indices into the dataset of this rank's samples at a step, `(B,)` int64."""
        positions = self.positions(step).numpy()
        epochs, places = np.divmod(positions, len(self.dataset))
        parts = [self._order(epoch)[places[epochs == epoch]] for epoch in np.unique(epochs).tolist()]
        return torch.from_numpy(np.concatenate(parts))

    def batch(self, step: int) -> Batch:
        """Return the batch of a step; an error is noted with the step and its samples."""
        samples = self.samples(step)
        try:
            return self.collate(self.dataset.__getitems__(samples), self.positions(step))
        except Exception as error:
            error.add_note(f"while preparing the batch of step {step}: {self.describe(step)}")
            raise

    def describe(self, step: int) -> str:
        """Where the samples of a step come from, in words: frames and episodes of the dataset."""
        frames = self.dataset.frames[self.samples(step)].sort().values
        starts = self.dataset.source.bounds[:, 0].contiguous()
        episodes = (torch.searchsorted(starts, frames, right=True) - 1).unique()
        return f"frames {_listed(frames)} of the dataset, from its episodes {_listed(episodes)}"

    def batches(self, start: int = 0, stop: int | None = None, prefetch: int = 2) -> Iterator[Batch]:
        """Iterate over the batches of steps `start`, `start + 1`, …, up to `stop` (endless by default).

        prefetch: batches that a background thread prepares ahead, 0 for none. Closing the iterator ends the thread.
        """
        steps = count(start) if stop is None else range(start, stop)
        made = (self.batch(step) for step in steps)
        return _prefetched(made, prefetch) if prefetch > 0 else made

    def _permutation(self, epoch: int) -> np.ndarray:
        return np.random.default_rng([self.seed, epoch]).permutation(len(self.dataset))


def _listed(numbers: Tensor, most: int = 16) -> str:
    more = f", … ({len(numbers)} in all)" if len(numbers) > most else ""
    return ", ".join(map(str, numbers[:most].tolist())) + more


class _End:
    """The last entry of a queue: nothing more comes, or the error that ended it."""

    def __init__(self, error: BaseException | None = None) -> None:
        self.error = error


def _prefetched[T](items: Iterator[T], depth: int) -> Iterator[T]:
    """Yield `items`, made by a thread that stays `depth` ahead; its error is raised here, in order."""
    ready: queue.Queue[T | _End] = queue.Queue(maxsize=depth)
    closed = threading.Event()

    def put(item: T | _End) -> None:
        while not closed.is_set():
            try:
                return ready.put(item, timeout=0.1)
            except queue.Full:
                continue

    def produce() -> None:
        try:
            for item in items:
                put(item)
                if closed.is_set():
                    return
            put(_End())
        except BaseException as error:
            put(_End(error))

    thread = threading.Thread(target=produce, name="batch-prefetch", daemon=True)
    thread.start()
    try:
        while not isinstance(item := ready.get(), _End):
            yield item
        if item.error is not None:
            raise item.error
    finally:
        closed.set()
        thread.join()
