"""Batches of one rank, made in this process or by data workers, each of which makes its own part of every batch.

The workers are those of torch's DataLoader, started by a fork server that has imported what they need once: a worker
that has opened nothing yet costs next to no memory of its own.
"""

import gc
import logging
import multiprocessing
import os
import queue
import signal
import threading
from collections import Counter
from collections.abc import Generator, Iterable, Iterator, Sequence
from contextlib import closing
from multiprocessing import forkserver, resource_tracker
from multiprocessing.util import Finalize
from typing import Any, cast

from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from vla_mot.batch import Batch
from vla_mot.data.faults import Fault, FaultBudget
from vla_mot.data.joining import join
from vla_mot.data.stream import Part, SampleStream, StreamConfig
from vla_mot.errors import DataWorkerError

log = logging.getLogger(__name__)

_IMPORTS = ["vla_mot.data.stream", "vla_mot.backbones.tokenizers"]  # by the fork server, once for all workers
_AHEAD = 2  # parts that a worker makes ahead
_STOP_SIGNALS = {signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2}


class Loader:
    """The batches of one rank, in order, endless, from any step on.

    workers: processes; 0 makes the batches in this one. skip_broken: how many places of the data may be unreadable.
    Raises ConfigError when the shards cannot be shared by all workers of all ranks.
    """

    def __init__(self, config: StreamConfig, workers: int = 0, skip_broken: int = 0) -> None:
        self.config, self.workers = config, workers
        self._names = [entry.name for entry in config.recipe.entries]
        self._budget = FaultBudget(skip_broken, self._names)
        self._own = SampleStream(config) if workers == 0 else None
        for worker in range(workers):
            config.places(0, worker, workers)
        if workers > (cores := _cores()):
            log.warning(
                "data.workers=%d are more than the cores that this process may use (%d); fewer are often faster.",
                workers,
                cores,
            )

    @property
    def faults(self) -> tuple[Fault, ...]:
        """What was skipped so far."""
        return self._budget.found

    def batches(self, start: int = 0, stop: int | None = None, prefetch: int = 2) -> Generator[Batch]:
        """Iterate over the batches of steps `start`, `start + 1`, …, up to `stop` (endless by default).

        prefetch: batches that a background thread holds ready, 0 for none; workers need it. Closing the iterator ends
        the thread and the workers.
        Raises DatasetError when data cannot be read, DataWorkerError when a worker died.
        """
        made = self._made(start, stop)
        return _prefetched(made, max(prefetch, 1)) if prefetch or self.workers else made

    def describe(self, batch: Batch) -> str:
        """Where the samples of a batch come from, in words: frames and episodes of datasets."""
        if batch.origin is None:
            return "samples of unknown origin"
        told = []
        for number in batch.origin[:, 0].unique().tolist():
            _, episodes, frames = batch.origin[batch.origin[:, 0] == number].unbind(1)
            told.append(
                f"frames {_listed(frames.sort().values)} of dataset {self._names[number]!r}, from its episodes "
                f"{_listed(episodes.unique())}"
            )
        return "; ".join(told)

    def composition(self, batch: Batch) -> dict[str, int]:
        """How many samples of a batch come from each group of the mixture, in the order of the groups' names."""
        if batch.origin is None:
            return {}
        entries = self.config.recipe.entries
        counts = Counter(entries[number].group for number in batch.origin[:, 0].tolist())
        return {group: counts[group] for group in sorted({entry.group for entry in entries})}

    def _made(self, start: int, stop: int | None) -> Generator[Batch]:
        if self._own is not None:
            for part in self._own.parts(start, stop):
                yield self._joined([part])
            return
        with closing(self._parts(start, stop)) as parts:
            while several := [part for _, part in zip(range(self.workers), parts, strict=False)]:
                yield self._joined(several)

    def _joined(self, parts: Sequence[Part]) -> Batch:
        self._budget.add(fault for part in parts for fault in part.faults)
        return join([part.batch for part in parts if part.batch is not None])

    def _decoding(self) -> list[str]:
        """What workers import to decode videos."""
        return ["lerobot.datasets.video_utils"] if self.config.recipe.frames.store == "video" else []

    def _parts(self, start: int, stop: int | None) -> Generator[Part]:
        """The parts of all workers in turn, step by step."""
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload([*_IMPORTS, *self._decoding()])
        _start_fork_server()
        loader = _Workers(
            _Parts(self.config, start, stop),
            batch_size=None,
            num_workers=self.workers,
            collate_fn=cast(Any, _unchanged),
            worker_init_fn=_set_up,
            multiprocessing_context=context,
            prefetch_factor=_AHEAD,
        )
        others = set(multiprocessing.active_children())
        arriving = iter(loader)
        workers = set(multiprocessing.active_children()) - others
        # At exit multiprocessing sends its children SIGTERM, to which these are deaf, and waits for them; before that
        # it does this.
        end_workers = Finalize(None, _kill, (workers,), exitpriority=0)
        try:
            yield from _received(arriving)
        finally:
            del arriving  # torch asks the workers to end, and waits some seconds
            end_workers()  # those that are stuck


def _cores() -> int:
    """Those that this process may use, where the system tells."""
    if hasattr(os, "sched_getaffinity"):  # macOS has none
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _kill(workers: Iterable[multiprocessing.process.BaseProcess]) -> None:
    for worker in workers:
        if worker.is_alive():
            worker.kill()


def _received(arriving: Iterator[Part | Exception]) -> Iterator[Part]:
    """What the workers send; an error that one met is raised here, as is the death of one."""
    while True:
        try:
            part = next(arriving)
        except StopIteration:
            return
        except (RuntimeError, OSError, EOFError) as error:  # a worker that is gone; our own arrive as values
            raise DataWorkerError(
                f"a data worker died: {error} Was it killed, or is the machine out of memory? Fewer data.workers, "
                "or a smaller data.most_open, need less."
            ) from error
        if isinstance(part, Exception):
            raise part
        yield part


def _start_fork_server() -> None:
    """Start it, and thereby all workers, deaf to what asks a trainer to stop: that is for the trainer to hear.

    Terminals, launchers and schedulers send their signals to all processes of a job, and a trainer whose workers are
    gone cannot end the step that it is in. Blocked signals stay blocked in whatever a process starts.
    """
    resource_tracker.ensure_running()  # when it starts, it unblocks some of them
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _STOP_SIGNALS)
    try:
        forkserver.ensure_running()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


class _Workers(DataLoader[Part | Exception]):
    """Torch says twice that there are more workers than cores; `Loader` says it once."""

    def check_worker_number_rationality(self) -> None:
        """Nothing."""


class _Parts(IterableDataset[Part | Exception]):
    """What one worker yields; an error is its last word, so that it reaches the user as it was raised."""

    def __init__(self, config: StreamConfig, start: int, stop: int | None) -> None:
        self.config, self.start, self.stop = config, start, stop

    def __iter__(self) -> Iterator[Part | Exception]:
        info = get_worker_info()
        assert info is not None, "made for the workers of a DataLoader"
        try:
            yield from SampleStream(self.config, info.id, info.num_workers).parts(self.start, self.stop)
        except Exception as error:
            yield error


def _unchanged(part: Part | Exception) -> Part | Exception:
    return part


def _set_up(worker: int) -> None:
    gc.freeze()  # a collection writes to every object that came with the fork, and so copies it: 100 MiB a worker
    threading.Thread(target=_end_with_trainer, name="trainer-watch", daemon=True).start()


def _end_with_trainer() -> None:
    """Torch's own watch looks at the process that forked this one: the fork server, which ends after its workers."""
    trainer = multiprocessing.parent_process()
    assert trainer is not None, "runs in a data worker"
    trainer.join()
    os._exit(1)


def _listed(numbers: Tensor, most: int = 16) -> str:
    more = f", … ({len(numbers)} in all)" if len(numbers) > most else ""
    return ", ".join(map(str, numbers[:most].tolist())) + more


class _End:
    """The last entry of a queue: nothing more comes, or the error that ended it."""

    def __init__(self, error: BaseException | None = None) -> None:
        self.error = error


def _prefetched[T](items: Generator[T], depth: int) -> Generator[T]:
    """Yield `items`, made by a thread that stays `depth` ahead; its error is raised here, in order.

    A worker's death is noticed in that thread: torch would otherwise interrupt the main one in the midst of a step.
    """
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
        finally:
            items.close()

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
