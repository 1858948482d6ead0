"""Inference in a worker thread, beside the control loop."""

import logging
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace

from vla_mot.batch import ActionChunk
from vla_mot.infer.inference import Answer, InferenceError, Question
from vla_mot.infer.policy import Policy
from vla_mot.options import at_least

log = logging.getLogger(__name__)

Clock = Callable[[], float]
"""Seconds since some moment."""

_AHEAD = 2  # preparations that may wait; a robot that is faster than they are shall not pile them up
_RECENT = 10  # delays of which the largest is expected next, as in the RTC paper's Algorithm 1


class BackgroundInference:
    """Predicts in one worker thread; an `Inference`.

    clock: measures latencies. first_delay: control steps that the first answer is expected to take.
    """

    def __init__(self, policy: Policy, *, clock: Clock = time.perf_counter, first_delay: int = 1) -> None:
        at_least(0, {"first_delay": first_delay})
        self._policy, self._clock = policy, clock
        self._worker = ThreadPoolExecutor(1, "vla-mot-inference")
        self._future: Future[Answer] | None = None
        self._abandoned: list[Future[Answer]] = []
        self._preparing: list[Future[object]] = []
        self._failed = False
        self._delays = deque([first_delay], maxlen=_RECENT)

    @property
    def busy(self) -> bool:
        """See `Inference`."""
        return self._future is not None

    @property
    def expected_delay(self) -> int:
        """See `Inference`: the largest of the recent ones."""
        return max(self._delays)

    def ask(self, question: Question, step: int) -> None:
        """See `Inference`; returns at once."""
        assert self._future is None, "one question at a time"
        self._future = self._worker.submit(self._predict, question, step)

    def prepare(self, work: Callable[[Policy], object]) -> None:
        """See `Inference`; returns at once. What fails, or is left out because enough of it waits already, is done when
        it is needed."""
        self._preparing = [earlier for earlier in self._preparing if not earlier.done()]
        if len(self._preparing) < _AHEAD:
            self._preparing.append(self._worker.submit(work, self._policy))
            self._preparing[-1].add_done_callback(self._note)

    def _note(self, prepared: Future[object]) -> None:
        """Say once that preparing fails: actions stay right, but come later."""
        if not prepared.cancelled() and (error := prepared.exception()) and not self._failed:
            self._failed = True
            log.warning(
                "what was to be prepared beside the control loop failed, and is done late", exc_info=error
            )

    def answer(self, step: int) -> Answer | None:
        """See `Inference`. Raises InferenceError, from its cause, when a prediction failed."""
        for abandoned in [future for future in self._abandoned if future.done()]:
            self._abandoned.remove(abandoned)
            _result(abandoned)
        if self._future is None or not self._future.done():
            return None
        future, self._future = self._future, None
        found = _result(future)
        self._delays.append(step - found.asked)
        return found

    def run(self, question: Question) -> ActionChunk:
        """Predict in the worker thread, and wait for it."""
        return _result(self._worker.submit(self._predict, question, 0)).chunk

    def wait(self, timeout: float | None = None) -> None:
        """Block until the question under way, if any, is answered. Raises TimeoutError after `timeout` seconds."""
        if self._future is not None:
            self._future.exception(timeout)

    def forget(self) -> None:
        """Nobody wants the answer under way any more; the next question waits for its end."""
        if self._future is not None and not self._future.cancel():
            self._abandoned.append(self._future)
        self._future = None

    def close(self) -> None:
        """Let the prediction under way end, and stop. What went wrong in it is logged: nobody asks any more."""
        self.forget()
        self._worker.shutdown(wait=True)
        for future in self._abandoned:
            if error := future.exception():
                log.error("the last prediction failed", exc_info=error)
        self._abandoned.clear()

    def _predict(self, question: Question, step: int) -> Answer:
        started = self._clock()
        chunk = question.put(self._policy)
        # Here, not in the loop, is waited for the device.
        chunk = replace(chunk, actions=chunk.actions.cpu())
        return Answer(chunk, step, self._clock() - started)


def _result(future: Future[Answer]) -> Answer:
    error = future.exception()
    if error is not None:
        raise InferenceError(f"a prediction beside the control loop failed: {error}") from error
    return future.result()
