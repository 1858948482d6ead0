"""Datasets that are open, the one used longest ago closed when there are too many."""

from collections import OrderedDict
from collections.abc import Callable
from typing import Protocol

from vla_mot.options import at_least


class Closes(Protocol):
    """Something that holds descriptors or mappings until it is closed."""

    def close(self) -> None:
        """Give them back."""
        ...


class OpenDatasets[T: Closes]:
    """Opens datasets by number, on first use, and holds the `most` that were used last; others are closed.

    open_one: opens the dataset of a number; what it raises reaches who asked, and the next one who asks tries again.
    opened: how often a dataset was opened. For one thread; each worker process has its own.
    """

    def __init__(self, open_one: Callable[[int], T], most: int) -> None:
        at_least(1, {"datasets that may be open": most})
        self._open_one, self._most = open_one, most
        self._held: OrderedDict[int, T] = OrderedDict()
        self.opened = 0

    def __len__(self) -> int:
        """How many are open now."""
        return len(self._held)

    def get(self, number: int) -> T:
        """The dataset of that number; what it gives is used before the next one is asked for."""
        if number not in self._held:
            self._shrink(self._most - 1)  # first, so that there are never more than `most`
            self._held[number] = self._open_one(number)
            self.opened += 1
        self._held.move_to_end(number)
        return self._held[number]

    def close(self) -> None:
        """Close all."""
        self._shrink(0)

    def _shrink(self, size: int) -> None:
        while len(self._held) > size:
            self._held.popitem(last=False)[1].close()
