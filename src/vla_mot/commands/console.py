"""What the commands say while they work: lines, tables and progress bars, on stdout.

On a terminal a bar moves; into a file or a pipe a line is written now and then instead.
"""

import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

from rich.console import Console
from rich.logging import RichHandler
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeRemainingColumn,
)
from rich.table import Column

_PIPE_WIDTH = 160  # columns, where there is no terminal that has a width
_BAR_WIDTH = 30  # columns
_LINE_EVERY = 20.0  # seconds between lines where no bar can move


def _console(*, stderr: bool = False) -> Console:
    made = Console(highlight=False, stderr=stderr)
    if not made.is_terminal:
        made.width = _PIPE_WIDTH
    return made


console = _console()


class Advance(Protocol):
    """(units done, of how many, a note) → None."""

    def __call__(self, done: int, total: int, note: str = "") -> None: ...


@contextmanager
def progress(title: str) -> Iterator[Advance]:
    """Show the progress of one long thing; yields the function to report it with."""
    if not console.is_terminal:
        yield _lines(title)
        return
    whole = Column(no_wrap=True)  # in a narrow window the bar shrinks, not the numbers
    columns = (
        TextColumn(title, table_column=whole),
        BarColumn(bar_width=None, table_column=Column(ratio=1, max_width=_BAR_WIDTH)),
        MofNCompleteColumn(table_column=whole),
        TextColumn("[dim]{task.fields[note]}", table_column=whole),
        TimeRemainingColumn(compact=True, elapsed_when_finished=True, table_column=whole),
        TextColumn("{task.fields[left]}", table_column=whole),
    )
    with Progress(*columns, console=console, expand=True) as bar:
        task = bar.add_task(title, total=None, note="", left="left")

        def advance(done: int, total: int, note: str = "") -> None:
            bar.update(task, completed=done, total=total, note=note, left="" if done >= total else "left")

        yield advance


def _lines(title: str) -> Advance:
    started = last = time.monotonic()
    first: tuple[int, float] | None = None  # a resumed run begins in the middle, which took no time here

    def advance(done: int, total: int, note: str = "") -> None:
        nonlocal last, first
        now = time.monotonic()
        first = first or (done, now)
        if now - last < _LINE_EVERY and done < total:
            return
        last = now
        eta = f", {clock(now - started)}"
        if done < total:
            pace = (now - first[1]) / (done - first[0]) if done > first[0] else None
            eta = f", {clock(pace * (total - done))} left" if pace is not None else ""
        console.print(f"{title}: {done}/{total}{eta}{'  ' + note if note else ''}")

    return advance


def clock(seconds: float) -> str:
    """`4:05` or `1:04:05`."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def show_library_log(rank: int = 0) -> None:
    """Print the library's warnings (what was skipped, dropped or built again) as they come.

    Those of another rank than the main one, whose console is quiet, go to stderr under its number.
    """
    logger = logging.getLogger("vla_mot")
    for shown in [handler for handler in logger.handlers if isinstance(handler, RichHandler)]:
        logger.removeHandler(shown)
    handler = RichHandler(
        console=_console(stderr=True) if rank else console, show_time=False, show_path=False
    )
    handler.setFormatter(logging.Formatter(f"rank {rank}: %(message)s" if rank else "%(message)s"))
    logger.addHandler(handler)
    logger.setLevel(logging.WARNING)
    logger.propagate = False
