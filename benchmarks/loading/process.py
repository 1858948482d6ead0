"""Trials as other processes see them: starts one, asks it, ends it."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from loading.trial import Setup


class Trial:
    """A running trial. started: seconds of its imports, until it was ready to draw, and until its first batch."""

    def __init__(self, process: subprocess.Popen) -> None:
        self._process = process
        self.started: dict[str, float] = self._answer()

    def draw(self, skip: int, seconds: float, step: float = 0.0) -> dict[str, float]:
        """As `trial.draw`."""
        return self._ask(do="draw", skip=skip, seconds=seconds, step=step)

    def weigh(self) -> dict[str, float]:
        """As `trial.weigh`."""
        return self._ask(do="weigh")

    def _ask(self, **command: Any) -> dict[str, float]:
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(command) + "\n")
        self._process.stdin.flush()
        return self._answer()

    def _answer(self) -> dict[str, float]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"the trial {self._process.args} died; what it said stands above.")
        return json.loads(line)


@contextmanager
def running(setup: Setup, home: Path) -> Iterator[Trial]:
    """A trial until the block ends. home: where the libraries keep what they cache."""
    command = [sys.executable, str(Path(__file__).with_name("trial.py")), json.dumps(asdict(setup))]
    places = {"HF_HOME": str(home), "XDG_CACHE_HOME": str(home), "HF_HUB_OFFLINE": "1"}
    with (
        (home / "log.txt").open("a") as log,
        subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
            env=os.environ | places,
        ) as process,
    ):
        yield Trial(process)
        assert process.stdin is not None
        process.stdin.close()
