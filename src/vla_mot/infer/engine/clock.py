"""How long a stage takes: not asked, or with the device waited for."""

import time
from contextlib import AbstractContextManager, nullcontext

import torch


class Timed:
    """Adds the seconds of a `with` block to those of its stage."""

    def __init__(self, seconds: dict[str, float], stage: str, device: torch.device) -> None:
        self._seconds, self._stage, self._device = seconds, stage, device

    def _now(self) -> float:
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        return time.perf_counter()

    def __enter__(self) -> None:
        self._start = self._now()

    def __exit__(self, *error: object) -> None:
        self._seconds[self._stage] = self._seconds.get(self._stage, 0.0) + self._now() - self._start


def untimed(stage: str) -> AbstractContextManager[None]:
    """Nobody asks."""
    return nullcontext()
