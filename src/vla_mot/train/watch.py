"""A watch over a rank's progress: whoever stands still for too long says where, and ends.

A rank may wait forever: for a file system, a driver, a data worker, or another rank. Where several train together, all
stand still when one does; `train.standing` tells which.
"""

import faulthandler
import os
import socket
import threading
import time
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Literal, Self

from vla_mot.train.standing import Standing, culprits, stacks, waits_for_others

Phase = Literal["start", "data", "forward", "backward", "optimizer", "validation", "checkpoint"]

STUCK_EXIT = 4
"""The exit code of a process that stood still. Of one that was stuck holding the interpreter it is 1: see Watchdog."""
STUCK_FOLDER = "stuck"

_HINTS: dict[str, str] = {
    "data": "Where data.prepare=false, a dataset's frame cache is built as a whole when it is first drawn, here or in "
    "a data worker. If that takes longer, build it before (data.prepare=true), or raise train.safety.stuck_seconds.",
}
"""What a phase may do that is slow and not stuck."""

_STDERR = 2  # the descriptor: sys.stderr may belong to a progress bar that the stuck thread has locked
_LONGEST_TICK = 5.0  # seconds


class Watchdog:
    """Ends the process when nothing calls `enter` for `stuck_seconds`, or when another rank has ended so.

    Before that it writes where this rank stands and the stacks of all threads to stderr and to
    `<run>/stuck/rank-<rank>.txt`; then it waits a moment for the other ranks' files and says who is behind. The exit
    code is `STUCK_EXIT`.

    A thread looks now and then; `enter` costs what storing four numbers costs. That thread needs the interpreter. If a
    call holds it (native code that never returns), Python's faulthandler writes the stacks to stderr and ends the
    process with exit code 1 instead; nothing else can run then. Time in which the process is suspended counts too.

    run: the run's folder, the same for all ranks. stuck_seconds: None turns it off. size: how many ranks there are.
    """

    def __init__(self, run: Path, stuck_seconds: float | None, rank: int = 0, size: int = 1) -> None:
        self._folder, self._limit, self._rank, self._size = run / STUCK_FOLDER, stuck_seconds, rank, size
        self._tick = min(_LONGEST_TICK, (stuck_seconds or 0.0) / 4)
        self._closed = threading.Event()
        self._thread: threading.Thread | None = None
        self._at: tuple[int, int, Phase, float] = (0, 0, "start", time.monotonic())
        self._stale: set[tuple[str, int]] = set()  # reports of an earlier life of this run

    def enter(self, step: int, phase: Phase) -> None:
        """Say that a phase of a step begins. All ranks must go through the same phases."""
        self._at = (self._at[0] + 1, step, phase, time.monotonic())

    def __enter__(self) -> Self:
        if self._limit is not None:
            self._closed.clear()
            self._stale = set(self._reports())
            self._at = (self._at[0], self._at[1], self._at[2], time.monotonic())
            self._thread = threading.Thread(
                target=self._watch, args=(self._limit,), name="watchdog", daemon=True
            )
            self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._closed.set()
        if self._thread is not None:
            self._thread.join()

    def _watch(self, limit: float) -> None:
        armed = False
        while not self._closed.wait(self._tick):
            at = self._at
            seconds = time.monotonic() - at[3]
            if seconds >= limit:
                self._end(self._standing(), f"made no progress for {limit:g} s (train.safety.stuck_seconds)")
            if self._others():
                self._end(self._standing(), "ends because another rank made no progress")
            # Only this thread keeps it from going off: it does where a call keeps this thread from running.
            faulthandler.dump_traceback_later(limit + self._tick, exit=True, file=_STDERR)
            armed = True
        if armed:
            faulthandler.cancel_dump_traceback_later()

    def _standing(self) -> Standing:
        entered, step, phase, since = self._at
        seconds = time.monotonic() - since
        return Standing(self._rank, step, phase, entered, seconds, waits_for_others())

    def _end(self, standing: Standing, why: str) -> None:
        """Tell, wait for the others, and exit. stderr comes first: the run's folder may be what everyone waits for."""
        patience = 2 * self._tick + 1.0
        faulthandler.dump_traceback_later(2 * patience + 5.0, exit=True, file=_STDERR)
        path = self._path(self._rank)
        where = (
            f"{standing}, since {_clock(standing.seconds)}, on {socket.gethostname()}, process {os.getpid()}"
        )
        hint = f"{_HINTS[standing.phase]}\n" if standing.phase in _HINTS else ""
        report = f"{where}\nIt {why}. {hint}Its threads:\n{stacks(besides=threading.get_ident())}"
        _tell(f"\nerror: {report}")
        try:
            self._write(path, report)
        except OSError as error:
            _tell(f"error: {path} cannot be written: {error}\n")
        if self._size > 1:
            _tell(f"error: rank {self._rank}: {culprits(self._gathered(standing, patience), self._size)}\n")
        _tell(
            f"error: this run is stuck; the stacks are in {self._folder}. Its last checkpoint is whole: resume it.\n"
        )
        os._exit(STUCK_EXIT)

    def _path(self, rank: int) -> Path:
        return self._folder / f"rank-{rank}.txt"

    def _write(self, path: Path, report: str) -> None:
        """Whole or not at all: other ranks are looking."""
        path.parent.mkdir(parents=True, exist_ok=True)
        beside = path.with_name(f".{path.name}")
        beside.write_text(report)
        os.replace(beside, path)

    def _reports(self) -> list[tuple[str, int]]:
        """Every report in the run's folder, with the time of its writing."""
        try:
            found = sorted(self._folder.glob("rank-*.txt"))
            return [(path.name, path.stat().st_mtime_ns) for path in found]
        except OSError:  # a file system that fails now and then is no reason to end a run
            return []

    def _others(self) -> list[str]:
        """The reports of other ranks of this life of the run."""
        if self._size == 1:
            return []
        own = self._path(self._rank).name
        return [name for name, at in self._reports() if (name, at) not in self._stale and name != own]

    def _gathered(self, own: Standing, patience: float) -> list[Standing]:
        """Where the ranks stand, as far as they say so within `patience` seconds."""
        deadline = time.monotonic() + patience
        while len(names := self._others()) < self._size - 1 and time.monotonic() < deadline:
            time.sleep(0.1)
        lines = [(self._folder / name).read_text().partition("\n")[0] for name in names]
        return [own, *(standing for line in lines if (standing := Standing.parse(line)) is not None)]


def _tell(text: str) -> None:
    """Write to stderr, whatever it is bound to in Python."""
    with suppress(OSError):  # nobody reads it any more; the file has it
        os.write(_STDERR, text.encode(errors="replace"))


def _clock(seconds_ago: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S %Z", time.localtime(time.time() - seconds_ago))
