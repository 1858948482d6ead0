"""What the server counts, in Prometheus' text format. Touched by the event loop alone."""

from bisect import bisect_left
from collections.abc import Callable, Iterator

_SECONDS = (0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 60.0)
_ROWS = (1, 2, 4, 8, 16, 32, 64)
_CALLS = (0, 1, 2, 4, 8, 16)


class Counter:
    """A number per value of one label, that only grows."""

    def __init__(self, name: str, label: str, values: tuple[str, ...], text: str) -> None:
        self.name, self.label, self.text = name, label, text
        self.counts = dict.fromkeys(values, 0)

    def add(self, value: str) -> None:
        """Count one more."""
        self.counts[value] += 1

    def lines(self) -> Iterator[str]:
        """Prometheus' lines."""
        yield from _head(self.name, "counter", self.text)
        for value, count in self.counts.items():
            yield f'{self.name}{{{self.label}="{value}"}} {count}'


class Histogram:
    """How often a measure fell below each bound."""

    def __init__(self, name: str, bounds: tuple[float, ...], text: str) -> None:
        self.name, self.bounds, self.text = name, bounds, text
        self._counts = [0] * (len(bounds) + 1)
        self._sum = 0.0

    def add(self, value: float) -> None:
        """Count one measure."""
        self._counts[bisect_left(self.bounds, value)] += 1
        self._sum += value

    def lines(self) -> Iterator[str]:
        """Prometheus' lines."""
        yield from _head(self.name, "histogram", self.text)
        total = 0
        for bound, count in zip((*self.bounds, "+Inf"), self._counts, strict=True):
            total += count
            yield f'{self.name}_bucket{{le="{bound}"}} {total}'
        yield f"{self.name}_sum {self._sum:.6f}"
        yield f"{self.name}_count {total}"


class Metrics:
    """All that one server counts. sessions, waiting: asked when the text is drawn."""

    def __init__(self, outcomes: tuple[str, ...], sources: tuple[str, ...]) -> None:
        self.requests = Counter(
            "vla_mot_requests_total", "outcome", outcomes, "messages by what came of them"
        )
        self.history = Counter("vla_mot_history_total", "source", sources, "chunks by their history frame")
        self.seconds = Histogram("vla_mot_request_seconds", _SECONDS, "from arrival to reply, chunks only")
        self.inference = Histogram("vla_mot_inference_seconds", _SECONDS, "one batch in the policy")
        self.batches = Histogram("vla_mot_batch_size", _ROWS, "requests that were predicted in one batch")
        self.understanding = Histogram(
            "vla_mot_understanding_age_calls", _CALLS, "calls since what a chunk was chosen by was understood"
        )
        self._gauges: list[tuple[str, str, Callable[[], float]]] = []

    def gauge(self, name: str, text: str, ask: Callable[[], float]) -> None:
        """Show what `ask` returns at the time."""
        self._gauges.append((name, text, ask))

    def text(self) -> str:
        """The page of /metrics."""
        lines = [line for part in self._parts() for line in part.lines()]
        for name, text, ask in self._gauges:
            lines += [*_head(name, "gauge", text), f"{name} {ask()}"]
        return "\n".join(lines) + "\n"

    def _parts(self) -> tuple[Counter | Histogram, ...]:
        return self.requests, self.history, self.seconds, self.inference, self.batches, self.understanding


def _head(name: str, kind: str, text: str) -> Iterator[str]:
    yield f"# HELP {name} {text}"
    yield f"# TYPE {name} {kind}"
