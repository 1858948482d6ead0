"""What a control loop went through: questions, chunks, steps without an action, and how long inference took."""

from collections import deque
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

_REMEMBERED = 10_000  # newest latencies that percentiles are of


@dataclass(frozen=True)
class Spread:
    """Median, 90th and 99th percentile, and the largest of some numbers; NaN without any."""

    p50: float
    p90: float
    p99: float
    largest: float

    @classmethod
    def of(cls, numbers: Sequence[float]) -> "Spread":
        """Of these."""
        if not numbers:
            return cls(*[float("nan")] * 4)
        return cls(*(float(number) for number in np.percentile(numbers, [50, 90, 99, 100])))


@dataclass(frozen=True)
class TimingReport:
    """Of one loop since it began.

    steps: control steps. asked: questions. used: chunks that arrived in time for at least one action.
    stale: chunks that were dropped, because all of their actions were past.
    waiting: steps before the first action. starved: later steps without an action; longest_starvation: in a row.
    slow_steps, fast_steps: steps that the loop itself began more than half a control period late, or early (a runner's
        only).
    oldest_understanding: calls for which the understanding behind a chunk was not renewed, at most.
    delay_steps: control steps from question to answer. latency_ms: of the predictions themselves.
    """

    steps: int
    asked: int
    used: int
    stale: int
    waiting: int
    starved: int
    longest_starvation: int
    slow_steps: int
    fast_steps: int
    oldest_understanding: int
    delay_steps: Spread
    latency_ms: Spread

    def to_dict(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)


class Timing:
    """Counts; `report` says what it counted."""

    def __init__(self) -> None:
        self.asked = self.used = self.stale = self.starved = self.oldest_understanding = 0
        self.slow_steps = self.fast_steps = 0
        self._steps = self._waiting = self._row = self._longest = 0
        self._delays: deque[float] = deque(maxlen=_REMEMBERED)
        self._latencies: deque[float] = deque(maxlen=_REMEMBERED)

    def stepped(self, *, has_action: bool) -> None:
        """One control step."""
        self._steps += 1
        if has_action:
            self._row = 0
        elif self._waiting == self._steps - 1:
            self._waiting += 1
        else:
            self.starved += 1
            self._row += 1
            self._longest = max(self._longest, self._row)

    def arrived(self, delay: int, seconds: float) -> None:
        """One answer, `delay` control steps after its question."""
        self._delays.append(delay)
        self._latencies.append(1000 * seconds)

    def report(self) -> TimingReport:
        """What was counted so far."""
        return TimingReport(
            steps=self._steps,
            asked=self.asked,
            used=self.used,
            stale=self.stale,
            waiting=self._waiting,
            starved=self.starved,
            longest_starvation=self._longest,
            slow_steps=self.slow_steps,
            fast_steps=self.fast_steps,
            oldest_understanding=self.oldest_understanding,
            delay_steps=Spread.of(list(self._delays)),
            latency_ms=Spread.of(list(self._latencies)),
        )
