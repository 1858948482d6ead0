"""Requests that wait together are predicted together, in one worker thread beside the event loop.

Everything here runs on the loop but the function that predicts, so that pings are answered during a long inference.
"""

import asyncio
import logging
import time
from collections.abc import Callable, Hashable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from vla_mot.infer.server.config import ServerConfig
from vla_mot.infer.server.errors import RequestError
from vla_mot.infer.server.metrics import Metrics
from vla_mot.infer.server.predicting import Predicted, Row

_log = logging.getLogger(__name__)
Predict = Callable[[Sequence[Row]], list[Predicted]]
"""B rows of one kind → a chunk for each; any exception of it is answered as `failed`."""


@dataclass(frozen=True)
class Answer:
    """One chunk `(L, D)`, how large its batch was, and how many seconds it waited and was computed.

    understanding_age: see `ActionChunk`.
    """

    actions: np.ndarray
    understanding_age: int
    batch: int
    waited: float
    computed: float


@dataclass(eq=False)
class _Waiting:
    row: Row
    since: float  # seconds of the loop's clock
    answer: asyncio.Future[Answer] = field(default_factory=lambda: asyncio.get_running_loop().create_future())

    def fail(self, error: RequestError) -> None:
        if not self.answer.done():
            self.answer.set_exception(error)


class Batcher:
    """A bounded queue and its one worker. clients: how many could send something now."""

    def __init__(
        self, predict: Predict, config: ServerConfig, metrics: Metrics, clients: Callable[[], int]
    ) -> None:
        self._predict, self._config, self._metrics, self._clients = predict, config, metrics, clients
        self._waiting: list[_Waiting] = []
        self._chores: dict[Hashable, Callable[[], None]] = {}
        self._arrived = asyncio.Event()
        self._worker = ThreadPoolExecutor(1, thread_name_prefix="vla-mot-inference")
        self._work: Future[Any] | None = None
        self._begun = 0.0  # when the work began, in seconds of the monotonic clock
        self._failed = 0
        self._task = asyncio.create_task(self._run())
        metrics.gauge("vla_mot_queue_length", "requests that wait for a batch", self.waiting)
        metrics.gauge(
            "vla_mot_batch_age_seconds", "how long the batch or encoding under way has taken, or 0", self.age
        )

    def waiting(self) -> int:
        """Requests that wait for a batch."""
        return len(self._waiting)

    def busy(self) -> bool:
        """Whether the worker is at something, which nothing can stop."""
        return self._work is not None and not self._work.done()

    def age(self) -> float:
        """Seconds that the worker has been at its present work; 0 where there is none."""
        return time.monotonic() - self._begun if self.busy() else 0.0

    def ailing(self) -> str:
        """Why nobody should count on an answer now; empty where all is well."""
        if self.age() > self._config.stuck_seconds:
            return f"stuck: one batch has taken more than {self._config.stuck_seconds:g} s"
        if self._failed >= self._config.failing_after:
            return f"failing: of the last {self._failed} batches no request could be answered"
        return ""

    async def submit(self, row: Row, deadline: float | None = None) -> Answer:
        """Wait for the chunk of one row. deadline: seconds of the loop's clock.

        Raises RequestError when too many wait, at the deadline, and when the policy cannot; cancelling gives the place
        in the queue back.
        """
        if self.waiting() >= self._config.max_waiting:
            raise RequestError(
                "busy", f"{self._config.max_waiting} requests wait already; try again in a moment."
            )
        loop = asyncio.get_running_loop()
        item = _Waiting(row, loop.time())
        timer = loop.call_at(deadline, item.fail, _late()) if deadline is not None else None
        self._waiting.append(item)
        self._arrived.set()
        try:
            return await item.answer
        finally:
            item.answer.cancel()
            if item in self._waiting:
                self._waiting.remove(item)
            if timer is not None:
                timer.cancel()

    def later(self, whose: Hashable, chore: Callable[[], None]) -> None:
        """Do something in the worker thread when no request waits. Everybody has one chore: a newer takes its place."""
        self._chores[whose] = chore
        self._arrived.set()

    def never(self, whose: Hashable) -> None:
        """Forget their chore."""
        self._chores.pop(whose, None)

    async def run_beside[T](self, function: Callable[..., T], *arguments: Any) -> T:
        """Run something in the worker thread. Cancelling gives up waiting for it, no more."""
        self._begun = time.monotonic()
        work = self._worker.submit(function, *arguments)
        self._work = work
        return await asyncio.wrap_future(work)

    async def close(self) -> None:
        """Stop; whoever still waits is told so. A batch that is being computed is not waited for."""
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)
        for item in self._waiting:
            item.fail(_stopping())
        self._worker.shutdown(wait=False, cancel_futures=True)

    async def _run(self) -> None:
        while True:
            await self._arrived.wait()
            while self._waiting or self._chores:
                if not self._waiting:
                    await self._do(self._chores.pop(next(iter(self._chores))))
                    continue
                await self._gather()
                if batch := self._take():
                    self._failed = 0 if await self._answer(batch) else self._failed + 1
                await asyncio.sleep(0)  # those who gave up leave the queue
            self._arrived.clear()

    async def _do(self, chore: Callable[[], None]) -> None:
        try:
            await self.run_beside(chore)
        except Exception:  # whoever needs what it was to prepare meets the same, and is told
            _log.exception("something could not be prepared for a later request")

    async def _gather(self) -> None:
        """Wait a moment for whom could still come; a lone client waits for nobody."""
        loop = asyncio.get_running_loop()
        until = loop.time() + self._config.batch_window_ms / 1000
        while self.waiting() < min(self._config.max_batch, self._clients()):
            self._arrived.clear()
            try:
                async with asyncio.timeout_at(until):
                    await self._arrived.wait()
            except TimeoutError:
                return

    def _take(self) -> list[_Waiting]:
        """The oldest request and those of its kind; the others keep their order."""
        alive = [item for item in self._waiting if not item.answer.done()]
        batch = [item for item in alive if item.row.kind == alive[0].row.kind][: self._config.max_batch]
        self._waiting = [item for item in alive if item not in batch]
        return batch

    async def _answer(self, batch: list[_Waiting]) -> bool:
        """Returns whether the policy could answer any of them."""
        loop = asyncio.get_running_loop()
        begun = loop.time()
        rows = [item.row for item in batch]
        try:
            found, seconds = await self.run_beside(_timed, self._predict, rows)
            answers = list(zip(batch, found, strict=True))
        except asyncio.CancelledError:
            for item in batch:
                item.fail(_stopping())
            raise
        except Exception as error:
            return await self._blame(batch, error)
        self._metrics.batches.add(len(batch))
        self._metrics.inference.add(seconds)
        for item, told in answers:
            self._metrics.understanding.add(told.understanding_age)
            if not item.answer.done():
                how = (told.actions, told.understanding_age, len(batch), begun - item.since, seconds)
                item.answer.set_result(Answer(*how))
        return True

    async def _blame(self, batch: list[_Waiting], error: Exception) -> bool:
        """Something failed: whose fault it was shows alone, and the neighbours get their answers."""
        if len(batch) > 1:
            _log.warning("a batch of %d failed (%s); its requests are tried one by one", len(batch), error)
            try:
                return any([await self._answer([item]) for item in batch])
            except asyncio.CancelledError:  # those whose turn had not come
                for item in batch:
                    item.fail(_stopping())
                raise
        if not isinstance(error, RequestError):
            _log.error("inference failed", exc_info=error)
            error = RequestError("failed", "the policy failed; the server's log says why.")
        batch[0].fail(error)
        return False


def _timed(predict: Predict, rows: Sequence[Row]) -> tuple[list[Predicted], float]:
    begun = time.perf_counter()
    return predict(rows), time.perf_counter() - begun


def _late() -> RequestError:
    return RequestError("late", "the deadline passed before there was an answer; what is old is not sent.")


def _stopping() -> RequestError:
    return RequestError("stopping", "the server ends.")
