"""Where ranks stand that make no progress, and which of them keeps the others waiting.

All ranks go through the same phases of the same steps, so that whoever has entered fewest phases is behind. Within one
phase, a rank that waits in an exchange with the others is not the one that they wait for.
"""

import re
import sys
import threading
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from types import FrameType

_EXCHANGES = "torch/distributed/distributed_c10d.py"
_WAITING = ", waiting for the others"
_LINE = re.compile(
    rf"rank (\d+) has stood at step (\d+), phase (\w+) \(number (\d+)\)({_WAITING})?, for ([\d.]+) s"
)


@dataclass(frozen=True)
class Standing:
    """Where a rank stands.

    entered: phases so far. seconds: since it entered this one. waits: it is in an exchange with the other ranks. Those
    that native code does, such as DDP's in the backward pass, are not seen.
    """

    rank: int
    step: int
    phase: str
    entered: int
    seconds: float
    waits: bool = False

    def __str__(self) -> str:
        return (
            f"rank {self.rank} has stood at step {self.step}, phase {self.phase} (number {self.entered})"
            f"{_WAITING if self.waits else ''}, for {self.seconds:.1f} s"
        )

    @classmethod
    def parse(cls, line: str) -> "Standing | None":
        """Read the first line of a report; None when it is none."""
        if (found := _LINE.match(line)) is None:
            return None
        rank, step, phase, entered, waits, seconds = found.groups()
        return cls(int(rank), int(step), phase, int(entered), float(seconds), waits is not None)


def culprits(standings: Iterable[Standing], size: int) -> str:
    """A sentence on who of `size` ranks keeps the others waiting, from those that said where they stand."""
    known = sorted(standings, key=lambda standing: (standing.entered, standing.waits, standing.rank))
    silent = sorted(set(range(size)) - {standing.rank for standing in known})
    if silent:
        return (
            f"No word from {_ranks(silent)}: dead, on a machine of its own that does not see this folder, or stuck "
            "inside a call that holds the interpreter, whose stacks are then on its stderr."
        )
    first = known[0]
    behind = [each for each in known if (each.entered, each.waits) == (first.entered, first.waits)]
    if len(behind) == len(known):
        return "All ranks stand at the same place, none is behind; compare their stacks."
    where = f"step {first.step}, phase {first.phase}"
    return (
        f"The others wait for {_ranks([each.rank for each in behind])}, still at {where}: look at that stack."
    )


def _ranks(ranks: Sequence[int], most: int = 8) -> str:
    more = f", … ({len(ranks)} in all)" if len(ranks) > most else ""
    return f"rank{'s' if len(ranks) > 1 else ''} {', '.join(map(str, ranks[:most]))}{more}"


def stacks(besides: int | None = None) -> str:
    """The stacks of all threads, innermost call last. besides: a thread to leave out.

    Sources are not read: they may lie on the very file system that hangs.
    """
    names = {thread.ident: thread.name for thread in threading.enumerate()}
    told = []
    for ident, frame in sys._current_frames().items():
        if ident != besides:
            told.append(f"thread {names.get(ident, 'without a name')} ({ident}), innermost call last:\n")
            told += reversed([_call(each) for each in _outwards(frame)])
    return "".join(told)


def waits_for_others() -> bool:
    """Whether the main thread is in an exchange with other ranks."""
    frame = sys._current_frames().get(threading.main_thread().ident or 0)
    return any(each.f_code.co_filename.endswith(_EXCHANGES) for each in _outwards(frame))


def _outwards(frame: FrameType | None) -> Iterator[FrameType]:
    while frame is not None:
        yield frame
        frame = frame.f_back


def _call(frame: FrameType) -> str:
    code = frame.f_code
    return f'  File "{code.co_filename}", line {frame.f_lineno}, in {code.co_qualname}\n'
