"""Being asked to stop: by a user (Ctrl-C), or by a scheduler that needs the machine for something else (pre-emption).

A signal is only noted; the loop looks at it between two steps, where the state is whole. Several ranks must stop after
the same step, although a signal may reach one before the other: they add up `stop_code(asked)` with the numbers that
they share at every step anyway, and all read the same `agreed_stop` out of the sum.
"""

import signal
import threading
import time
from types import FrameType, TracebackType
from typing import Any, Self

STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)
"""From the lightest to the weightiest: of several, the last counts. SIGUSR1 and SIGUSR2 are what SLURM's `--signal`
and submitit send some time before they end a job."""

MOST_RANKS = 2**13 - 1
_CODES = {number: float((MOST_RANKS + 1) ** place) for place, number in enumerate(STOP_SIGNALS)}
_SAME_PRESS = 0.3  # seconds: `timeout`, conda and others pass on what the terminal told their child as well
_LINGER = 30.0  # seconds that other ranks leave the first one to have the job queued again


def stop_code(asked: signal.Signals | None) -> float:
    """A request as a number, 0 for none; sums over up to `MOST_RANKS` ranks say what `agreed_stop` reads.

    They are exact in float64, and float32 is enough.
    """
    return 0.0 if asked is None else _CODES[asked]


def agreed_stop(total: float) -> signal.Signals | None:
    """The weightiest request in a sum, or a maximum, of codes; None when no rank was asked to stop."""
    heard = [number for number, code in _CODES.items() if total >= code]
    return heard[-1] if heard else None


def is_preemption(asked: signal.Signals) -> bool:
    """Whether the run is to go on elsewhere or later by itself: anything but Ctrl-C."""
    return asked is not signal.SIGINT


class StopRequests:
    """Catches `STOP_SIGNALS` while it is entered, and only remembers them; a second Ctrl-C stops at once, unless it
    comes with the first.

    asked: the weightiest request so far. A plain attribute, so that reading it at every step costs nothing.
    Outside the main thread, where Python allows no handlers, it hears nothing.
    """

    def __init__(self) -> None:
        self.asked: signal.Signals | None = None
        self._interrupted: float | None = None  # when
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            for number in STOP_SIGNALS:
                self._before[number] = signal.signal(number, self._hear)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            # None: installed by something other than Python, which alone could install it again.
            signal.signal(number, signal.SIG_DFL if handler is None else handler)

    def _hear(self, number: int, frame: FrameType | None) -> None:
        heard = signal.Signals(number)
        if heard is signal.SIGINT:
            now = time.monotonic()
            self._interrupted = now if self._interrupted is None else self._interrupted
            if now - self._interrupted > _SAME_PRESS:
                raise KeyboardInterrupt
        self.asked = agreed_stop(max(stop_code(self.asked), stop_code(heard)))

    def hand_over(self, agreed: signal.Signals, rank: int = 0, linger: float = _LINGER) -> None:
        """Call whoever handled `agreed` before: a launcher such as submitit, which has the job queued again.

        To be called once the checkpoint is written, after the `with` block; it may end the process. Where the handler
        leaves that to the first rank, the others wait `linger` seconds before they return: a rank that ends earlier
        may have the whole job ended before it is queued again.
        """
        handler = self._before.get(agreed)
        # Neither the system's (a number, or None where it is not Python's) nor Python's own.
        if not callable(handler) or handler is signal.default_int_handler:
            return
        handler(agreed, None)
        if rank > 0:
            time.sleep(linger)
