"""Chunks in time: which action belongs to which control step, and when the next chunk is asked for.

A chunk that was predicted from what was seen at control step `start` holds the actions of steps start, start + 1, ….
It arrives `delay` steps later; by then its first `delay` actions are past, and nobody executes them.

Legend: `B` robots, `L` chunk steps, `R` steps left over, `D` real action dims, `S` real state dims, `A` padded action
dims.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from vla_mot.flow.solvers import Guide
from vla_mot.robots.processor import Processor

Bend = Callable[[Tensor], Guide | None]
"""The noise `(B, L, A)` that a chunk starts from → what guides its flow, if anything does."""


@dataclass(frozen=True)
class TimedChunk:
    """Actions `(B, L, D)`, absolute in physical units, the first of them for control step `start`."""

    start: int
    actions: Tensor

    @property
    def end(self) -> int:
        """The first control step behind the chunk."""
        return self.start + self.actions.shape[1]

    def at(self, step: int) -> Tensor | None:
        """The action `(B, D)` for a control step, if the chunk has one."""
        return self.actions[:, step - self.start] if self.start <= step < self.end else None

    def rest(self, step: int) -> Tensor:
        """The actions `(B, R, D)` for `step` and later."""
        return self.actions[:, max(0, step - self.start) :]

    def rows(self, index: Tensor) -> "TimedChunk":
        """The same of only these robots."""
        return TimedChunk(self.start, self.actions[index.to(self.actions.device)])


class Chunks:
    """The newest chunk is executed, whatever the older ones said: *naive*. Other strategies change a part of this.

    every: control steps from one question to the next, unless the chunk would run out before the answer arrives.
    """

    def __init__(self, every: int) -> None:
        self._every = every
        self._newest: TimedChunk | None = None

    def due(self, step: int, delay: int) -> bool:
        """Whether a new chunk, which will take `delay` steps to arrive, should be asked for at `step`."""
        return self._newest is None or step - self._newest.start >= self._distance(delay)

    def asks_at(self, step: int, delay: int) -> bool:
        """Whether, as things go, a question will be asked at this later step, if each takes `delay` steps."""
        first = 0 if self._newest is None else self._newest.start
        return (step - first) % max(delay, self._distance(delay)) == 0  # one question at a time

    def _distance(self, delay: int) -> int:
        """Steps from one question to the next, if the answer to the first is there by then."""
        if self._newest is None:
            return self._every
        length = self._newest.end - self._newest.start
        return max(1, min(self._every, length - delay))

    def continuation(self, step: int, delay: int, state: Tensor, processor: Processor) -> Bend | None:
        """What bends the flow of the chunk that is asked for at `step`; None leaves it alone.

        delay: steps until it will arrive. state: `(B, S)` in physical units, at `step`. It may be called elsewhere and
        later: what it needs of these chunks it has taken with it.
        """
        return None

    def add(self, chunk: TimedChunk) -> None:
        """Take in a chunk that has arrived; they arrive in the order in which they were asked for."""
        self._newest = chunk

    def action(self, step: int) -> Tensor | None:
        """The action `(B, D)` to execute at `step`; None when there is none. Steps must not go back."""
        return None if self._newest is None else self._newest.at(step)

    def keep(self, rows: Sequence[int]) -> None:
        """Go on with only these robots, in this order."""
        if self._newest is not None:
            self._newest = self._newest.rows(torch.as_tensor(list(rows), dtype=torch.int64))
