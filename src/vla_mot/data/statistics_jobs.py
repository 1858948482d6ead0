"""Partial statistics of many datasets, by several processes, each dataset's kept as soon as it is counted.

Every process computes on one thread, and the parts are merged by whoever asked in the order of the datasets' names: the
result does not depend on how many processes there are, to the bit.
"""

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from vla_mot.data.partial_cache import read_partial, write_partial
from vla_mot.data.partial_statistics import Chunks, Partial, chosen_episodes, count_dataset, partial_key
from vla_mot.data.source import Source, Tables
from vla_mot.errors import ConfigError, DatasetError
from vla_mot.options import at_least
from vla_mot.robots.embodiment import Embodiment

_POLL = 0.2  # seconds between looks at how far the processes are

Advance = Callable[[int, int, str], None]
"""Called with (frames done, frames in all, a note)."""


@dataclass(frozen=True)
class Task:
    """One dataset to count. frames: in all its episodes, for the progress. episodes: the chosen ones; None: all."""

    name: str
    root: Path
    embodiment: Embodiment
    frames: int
    episodes: tuple[int, ...] | None = None


@dataclass(frozen=True)
class Counted:
    """Partials by the dataset's name, and the names of those that were computed now and not found."""

    partials: Mapping[str, Partial]
    computed: frozenset[str]


def count_datasets(
    tasks: Sequence[Task], chunks: Chunks, folder: Path, jobs: int = 1, advance: Advance | None = None
) -> Counted:
    """Count datasets, or find what was counted before in `folder`.

    jobs: processes; 1 computes in this one. Interrupted at any moment, what is finished stays in the folder.
    Raises DatasetError, once the others are counted, naming every dataset that cannot be read; ConfigError when a
    process died.
    """
    at_least(1, {"jobs": jobs})
    told = advance or (lambda done, total, note: None)
    work = [_Work(task, chunks, folder) for task in tasks]
    run = _in_processes if min(jobs, len(work)) > 1 else _in_turn
    found: dict[str, tuple[Partial, bool]] = {}
    failed: dict[str, Exception] = {}
    for name, result in run(work, min(jobs, len(work)), told):
        if isinstance(result, Exception):
            failed[name] = result
        else:
            found[name] = result
    if failed:
        raise _failure(failed, len(work))
    return Counted(
        partials={task.name: found[task.name][0] for task in tasks},
        computed=frozenset(name for name, (_, new) in found.items() if new),
    )


@dataclass(frozen=True)
class _Work:
    task: Task
    chunks: Chunks
    folder: Path

    def done(self, progress: Callable[[float], None]) -> tuple[Partial, bool]:
        """The partial, and whether it was computed now."""
        with _one_thread():
            if (stored := read_partial(self.folder, self._key())) is not None:
                return stored, False
            # Pictures are not looked at, so the tables alone will do.
            source = Source.open(self.task.root, self.task.embodiment, missing="report")
            partial = count_dataset(source, self.chunks, self.task.episodes, progress)
            write_partial(self.folder, partial)
            return partial, True

    def _key(self) -> str:
        """What the partial is kept under. The tables are hashed and not read: what is kept was found whole."""
        root, body = self.task.root, self.task.embodiment
        tables = Tables.identify(root, body)
        chosen = chosen_episodes(root, tables.episodes, self.task.episodes)
        return partial_key(tables.digest, body, self.chunks, chosen)


_Result = tuple[Partial, bool] | Exception


def _in_turn(work: Sequence[_Work], jobs: int, advance: Advance) -> Iterator[tuple[str, _Result]]:
    before, total = 0, sum(each.task.frames for each in work)
    for number, each in enumerate(work):
        frames, note = each.task.frames, _note(number, len(work))

        def progress(part: float, frames: int = frames, note: str = note, before: int = before) -> None:
            advance(before + min(int(part * frames), frames - 1), total, note)

        progress(0.0)
        try:
            yield each.task.name, each.done(progress)
        except (DatasetError, ConfigError) as error:
            yield each.task.name, error
        before += frames
        advance(before, total, _note(number + 1, len(work)))


def _in_processes(work: Sequence[_Work], jobs: int, advance: Advance) -> Iterator[tuple[str, _Result]]:
    total = sum(each.task.frames for each in work)
    context = multiprocessing.get_context("spawn")
    shared = _Shared(context.Event(), context.Value("q", 0))
    # Large ones first: a long dataset that is started last would be waited for alone.
    order = sorted(work, key=lambda each: (-each.task.frames, each.task.name))
    with _pool(jobs, context, shared) as pool:
        pending: dict[Future[tuple[Partial, bool]], str] = {
            pool.submit(_done_by_worker, each): each.task.name for each in order
        }
        while pending:
            ready, _ = wait(pending, timeout=_POLL, return_when=FIRST_COMPLETED)
            finished = len(work) - len(pending) + len(ready)
            done = total if finished == len(work) else min(shared.frames.value, total - 1)
            advance(done, total, _note(finished, len(work)))
            for future in ready:
                yield pending.pop(future), _result(future)


def _result(future: "Future[tuple[Partial, bool]]") -> _Result:
    try:
        return future.result()
    except (DatasetError, ConfigError) as error:
        return error
    except BrokenProcessPool as error:
        raise ConfigError(
            "a process that counted a dataset was killed, perhaps for want of memory. What is finished is kept: "
            "the same command goes on from there. Fewer jobs need less memory."
        ) from error


@contextmanager
def _pool(jobs: int, context: Any, shared: "_Shared") -> Iterator[ProcessPoolExecutor]:
    """Processes that end with the block, however it ends, after the block of rows that they are at."""
    pool = ProcessPoolExecutor(jobs, context, _start_worker, (shared,))
    try:
        yield pool
    finally:
        shared.stop.set()
        pool.shutdown(wait=True, cancel_futures=True)


def _note(finished: int, count: int) -> str:
    return f"{finished} of {count} datasets" if count > 1 else ""


def _failure(failed: Mapping[str, Exception], count: int) -> DatasetError | ConfigError:
    if count == 1:
        (error,) = failed.values()
        assert isinstance(error, DatasetError | ConfigError)
        return error
    listed = "\n".join(f"  - {name}: {failed[name]}" for name in sorted(failed))
    return DatasetError(
        f"{len(failed)} of {count} datasets cannot be counted:\n{listed}\n"
        "The others are kept. Mend these or leave them out: the same command then counts only what is missing."
    )


@contextmanager
def _one_thread() -> Iterator[None]:
    """Sums are split among threads, so their number would show in the last bits."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


# ---- inside a worker process --------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Shared:
    """What all processes share. stop: set when nobody waits any more. frames: that were counted so far."""

    stop: Any
    frames: Any


class _StoppedError(Exception):
    """Nobody waits for this any more."""


_shared: _Shared | None = None


def _start_worker(shared: _Shared) -> None:
    global _shared
    _shared = shared
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent hears it too, and says when to stop
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def _done_by_worker(work: _Work) -> tuple[Partial, bool]:
    assert _shared is not None
    shared, told = _shared, 0

    def progress(part: float) -> None:
        nonlocal told
        if shared.stop.is_set():
            raise _StoppedError
        now = int(part * work.task.frames)
        with shared.frames.get_lock():
            shared.frames.value += now - told
        told = now

    found = work.done(progress)
    progress(1.0)
    return found
