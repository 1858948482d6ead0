"""What of the data cannot be read: skipped up to a stated budget, counted and named, or fatal at once."""

import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from vla_mot.errors import DatasetError

log = logging.getLogger(__name__)


@dataclass(frozen=True, order=True)
class Fault:
    """A place that cannot be read. dataset: its number in the mixture. episode: None for all of them."""

    dataset: int
    episode: int | None
    reason: str

    @property
    def place(self) -> tuple[int, int | None]:
        """What is counted: every place once, however often it is drawn."""
        return self.dataset, self.episode


class FaultBudget:
    """Counts broken places over all workers of a rank.

    most: places that a rank may skip; 0 makes the first one fatal. names: of the datasets.
    """

    def __init__(self, most: int, names: Sequence[str]) -> None:
        self.most, self._names = most, names
        self._found: dict[tuple[int, int | None], Fault] = {}

    @property
    def found(self) -> tuple[Fault, ...]:
        """Every place once, in the order in which they were met."""
        return tuple(self._found.values())

    def add(self, faults: Iterable[Fault]) -> None:
        """Count and name new places. Raises DatasetError when there are more than the budget allows."""
        for fault in faults:
            if fault.place not in self._found:
                self._found[fault.place] = fault
                log.warning(
                    "skipped %s (%d of at most %d): %s", self._say(fault), *self._count(), fault.reason
                )
        if len(self._found) > self.most:
            listed = "\n".join(f"  - {self._say(fault)}: {fault.reason}" for fault in self.found)
            raise DatasetError(
                f"{len(self._found)} places of the data cannot be read, data.skip_broken allows {self.most}:\n"
                f"{listed}\nCopy them again, leave the datasets out (data.datasets), or raise data.skip_broken."
            )

    def _count(self) -> tuple[int, int]:
        return len(self._found), self.most

    def _say(self, fault: Fault) -> str:
        where = "the whole of" if fault.episode is None else f"episode {fault.episode} of"
        return f"{where} dataset {self._names[fault.dataset]!r}"
