"""How fast a run goes and what it takes: the clock of a log window, peak memory, and the rate that could be reached.

All of it depends on the machine, so its keys begin with `machine/` (and `samples_per_second`, `seconds`): what remains
of a record is the same whenever and wherever the run is repeated.
"""

import re
import resource
import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

MACHINE = "machine/"
_GIB = 2**30
_SIDES = {"cpu": 768, "cuda": 8192}  # of the square matrices, in numbers
_TRIES = 10


class Clock:
    """Time of a log window: how long it took, and how much of that was spent waiting for data, in seconds."""

    def __init__(self) -> None:
        self._waited, self._began = 0.0, time.perf_counter()

    def watch[T](self, items: Iterable[T]) -> Iterator[T]:
        """Yield `items`, and count how long each was waited for; the first window begins with the first of them."""
        self.take()
        arriving = iter(items)
        while True:
            asked = time.perf_counter()
            try:
                item = next(arriving)
            except StopIteration:
                return
            self._waited += time.perf_counter() - asked
            yield item

    @contextmanager
    def aside(self) -> Iterator[None]:
        """What is done meanwhile (validating, saving) does not count as time of training."""
        left = time.perf_counter()
        try:
            yield
        finally:
            self._began += time.perf_counter() - left

    def take(self) -> tuple[float, float]:
        """(seconds, of which waited) since the last call; a new window begins."""
        now = time.perf_counter()
        found = now - self._began, self._waited
        self._waited, self._began = 0.0, now
        return found


def peak_memory(device: str) -> float:
    """GiB at the peak so far: what torch's allocator held on a GPU, or what this process had resident on a CPU."""
    if torch.device(device).type == "cuda":
        return torch.cuda.max_memory_allocated(device) / _GIB
    return _most_resident() / _GIB


def _most_resident() -> int:
    """Bytes. On Linux `ru_maxrss` outlives exec: a process that was started by a larger one would have that one's."""
    status = Path("/proc/self/status")
    if status.exists() and (told := re.search(r"^VmHWM:\s+(\d+) kB$", status.read_text(), re.MULTILINE)):
        return int(told[1]) * 1024
    unit = 1 if sys.platform == "darwin" else 1024  # of ru_maxrss, in bytes
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


@torch.no_grad()
def matmul_ceiling(device: str, precision: str) -> float:
    """FLOP/s that this device reaches in the product of two large square matrices: the best of ten, timed now.

    precision: `bf16` or `fp32`, of the run. Draws from a generator of its own.
    """
    kind = torch.device(device).type
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    side = _SIDES.get(kind, _SIDES["cpu"])
    generator = torch.Generator(device).manual_seed(0)
    # Random numbers, for a GPU multiplies constants at a higher clock.
    a = torch.randn(side, side, device=device, generator=generator).to(dtype)
    best = float("inf")
    for _ in range(_TRIES):
        _finish(kind)
        began = time.perf_counter()
        torch.mm(a, a)
        _finish(kind)
        best = min(best, time.perf_counter() - began)
    return 2 * side**3 / best


def _finish(kind: str) -> None:
    if kind != "cpu":
        torch.accelerator.synchronize()
