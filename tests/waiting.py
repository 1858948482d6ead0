"""Waiting for a process that trains to come so far."""

import subprocess
import time
from collections.abc import Callable
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
