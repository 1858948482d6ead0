"""Waiting for a run to come so far, be it in another process or in this one."""

import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from vla_mot.train.log import read_log


def steps_done(run: Path) -> int:
    """Optimizer steps that a run has logged."""
    return len([record for record in read_log(run) if record["kind"] == "train"])


def wait_for(ready: Callable[[], object], running: subprocess.Popen[str], limit: float = 300) -> None:
    """Return once `ready()` is true; an error when the process ends before, or after `limit` seconds."""
    deadline = time.monotonic() + limit
    while not ready():
        assert running.poll() is None, running.communicate()
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.05)


@contextmanager
def once(ready: Callable[[], object], act: Callable[[], None]) -> Iterator[None]:
    """Meanwhile a thread does `act()` as soon as `ready()` is true, as somebody outside would."""
    over = threading.Event()

    def watch() -> None:
        while not over.wait(0.02):
            if ready():
                return act()

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


@contextmanager
def ctrl_c_once(ready: Callable[[], object]) -> Iterator[None]:
    """Press Ctrl-C in this process as soon as `ready()` is true. A shell may have started it deaf to that."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with once(ready, lambda: os.kill(os.getpid(), signal.SIGINT)):
            yield
    finally:
        signal.signal(signal.SIGINT, before)
