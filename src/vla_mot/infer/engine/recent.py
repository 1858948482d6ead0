"""Things that are made once and kept while they are used: those used longest ago give way."""

from collections import OrderedDict
from collections.abc import Callable, Hashable


class Recent[T]:
    """At most so many made things, by what they were made for."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._kept: OrderedDict[Hashable, T] = OrderedDict()

    def __len__(self) -> int:
        return len(self._kept)

    def get(self, key: Hashable, make: Callable[[], T]) -> T:
        """What was made for `key`, or is made now."""
        if key not in self._kept:
            made = make()
            while len(self._kept) >= self._most:
                self._kept.popitem(last=False)
            self._kept[key] = made
        self._kept.move_to_end(key)
        return self._kept[key]

    def values(self) -> list[T]:
        """All, those used longest ago first."""
        return list(self._kept.values())

    def clear(self) -> None:
        """Keep nothing."""
        self._kept.clear()
