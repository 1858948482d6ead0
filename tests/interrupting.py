"""A command in a process of its own that Ctrl-C reaches, wherever the tests themselves run."""

import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager


def _hear_interrupts() -> None:
    # A shell starts what runs in the background with SIGINT ignored, and every child inherits that.
    signal.signal(signal.SIGINT, signal.SIG_DFL)


@contextmanager
def vla_mot_process(*arguments: str) -> Iterator[subprocess.Popen[str]]:
    """`vla-mot …`, killed at the end if it still runs."""
    process = subprocess.Popen(
        [sys.executable, "-m", "vla_mot.commands.main", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=_hear_interrupts,
    )
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def interrupt_when(process: subprocess.Popen[str], ready: Callable[[], bool], limit: float = 400) -> str:
    """Press Ctrl-C once `ready` says so; returns what the command wrote on stderr. limit: in seconds."""
    deadline = time.monotonic() + limit
    while not ready():
        assert process.poll() is None and time.monotonic() < deadline, process.communicate()[1]
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    return process.communicate(timeout=120)[1]
