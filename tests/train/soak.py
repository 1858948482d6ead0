"""A tiny run that is killed over and over, and one that is left alone: `python -m tests.train.soak FOLDER SEED KILLS`.

Every life of the run is a child that this process forks after it has imported everything, since the imports take
longer than the lives. Nothing is computed here, so that no thread exists that a fork would lose. Both runs end a
few steps after what the last kill left.
"""

import json
import os
import random
import signal
import sys
import time
import traceback
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
import torch.utils.tensorboard
from tests.train.runs import MemoryStream, trainer

from vla_mot.batch import Batch
from vla_mot.train.checkpoint import newest_checkpoint

STEPS, SAVE_EVERY, VALIDATE_EVERY = 100_000, 4, 10


class Ending(MemoryStream):
    """Batches up to a step, whatever the configuration says; None: all."""

    def __init__(self, last: int | None) -> None:
        super().__init__()
        self.last = last

    def batches(self, start: int = 0, stop: int | None = None, prefetch: int = 2) -> Iterator[Batch]:
        return super().batches(start, self.last or stop, prefetch)


def live(run: Path, last: int | None = None, *, save_async: bool = False) -> None:
    """Train from the newest checkpoint, if there is one, to a step."""
    every = {"save_every": SAVE_EVERY, "val_every": VALIDATE_EVERY}
    life = trainer(run, Ending(last), steps=STEPS, save_async=save_async, **every)
    if (checkpoint := newest_checkpoint(run)) is not None:
        life.resume(checkpoint)
    life.run()


def forked(act: Callable[[], None]) -> int:
    """The process id of a child that does `act` and ends with 0, or with 1 and a traceback."""
    child = os.fork()
    if child:
        return child
    code = 1
    try:
        act()
        code = 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(code)


def kill(child: int, run: Path) -> bool:
    """SIGKILL; returns whether a checkpoint was being written."""
    os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    assert os.WIFSIGNALED(status), f"a life ended by itself, with status {status}"
    return bool(writing(run))


def writing(run: Path) -> set[str]:
    """The checkpoints that are being written, or were when somebody was killed."""
    return {path.name for path in (run / "checkpoints").glob(".unfinished-*")}


def await_writing(run: Path, child: int, nth: int) -> None:
    """Wait until the child begins the `nth` checkpoint that was not begun before, or ends."""
    begun = writing(run)
    before = len(begun)
    deadline = time.monotonic() + 30
    while len(begun) < before + nth and time.monotonic() < deadline:
        if os.waitid(os.P_PID, child, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None:
            return
        begun |= writing(run)
        time.sleep(0.0005)


def main(folder: Path, seed: int, kills: int) -> None:
    """Half of the kills come at any time, the others while a checkpoint is written; then a last life ends the run."""
    torch.set_num_threads(1)
    trainer(folder / "never run")  # imports what a model needs
    warnings.simplefilter("error", DeprecationWarning)  # Python's, when it forks beside other threads
    draws, run, interrupted = random.Random(seed), folder / "killed", 0
    for number in range(kills):
        in_background = bool(number % 4 // 2)
        child = forked(lambda: live(run, save_async=in_background))  # noqa: B023  (called at once)
        if number % 2:
            await_writing(run, child, draws.randint(1, 2))
            time.sleep(draws.uniform(0.0, 0.1))
        else:
            time.sleep(draws.uniform(0.0, 1.5))
        interrupted += kill(child, run)
    checkpoint = newest_checkpoint(run)
    reached = 0 if checkpoint is None else int(checkpoint.name)
    for each in (run, folder / "whole"):
        child = forked(lambda: live(each, reached + 2 * SAVE_EVERY))  # noqa: B023
        assert os.waitpid(child, 0)[1] == 0
    print(json.dumps({"kills": kills, "while_writing": interrupted, "reached": reached}))


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
