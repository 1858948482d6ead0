"""What the long scripts of tools/ share: how they end, how what they started ends with them, and how fast that was."""

import ctypes
import signal
import statistics
import sys
from collections.abc import Callable, Iterable
from pathlib import Path

from vla_mot.commands.folders import read_config
from vla_mot.commands.main import STOPPED
from vla_mot.errors import CheckpointError, ConfigError
from vla_mot.train.log import read_log

_PARENT_DEATH_SIGNAL = 1  # PR_SET_PDEATHSIG


def run_script(main: Callable[[list[str]], None]) -> None:
    """Run a script that goes on where it was; SIGTERM and Ctrl-C end it in order, a ConfigError or CheckpointError in
    a sentence."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(STOPPED))
    try:
        main(sys.argv[1:])
    except (CheckpointError, ConfigError) as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        sys.exit("interrupted; the same command goes on")


def end_with_parent() -> None:
    """A `preexec_fn`: a training must not go on by itself when its script is killed, for the next one goes on with it.

    Only Linux tells a process that its parent died.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PARENT_DEATH_SIGNAL, signal.SIGKILL)


def seconds_per_step(runs: Iterable[Path]) -> float:
    """The median over the log windows of runs of ours, validation and checkpoints left out."""
    return statistics.median(
        read_config(run)["train"]["batch_size"] / record["samples_per_second"]
        for run in runs
        for record in read_log(run)
        if record["kind"] == "train"
    )
