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
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
import torch.utils.tensorboard
from tests.train.forks import forked
from tests.train.runs import MemoryStream, trainer

from vla_mot.batch import Batch
from vla_mot.train.checkpoint import newest_checkpoint

STEPS, SAVE_EVERY, VALIDATE_EVERY = 100_000, 4, 10
PATIENCE = 120.0  # seconds in which a moment to kill must come


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


def writing(run: Path) -> set[str]:
    """The checkpoints that are being written, or were when somebody was killed."""
    return {path.name for path in (run / "checkpoints").glob(".unfinished-*")}


def kill(child: int, then: Callable[[], bool] = lambda: True) -> None:
    """SIGKILL at a moment at which `then` holds; the child is stopped while it is asked, so that it still holds."""
    deadline = time.monotonic() + PATIENCE
    while True:
        if then():
            os.kill(child, signal.SIGSTOP)
            _, status = os.waitpid(child, os.WUNTRACED)
            assert os.WIFSTOPPED(status), f"a life ended by itself, with status {status}"
            if then():
                break
            os.kill(child, signal.SIGCONT)
        ended, status = os.waitpid(child, os.WNOHANG)
        assert not ended, f"a life ended by itself, with status {status}"
        assert time.monotonic() < deadline, f"what a kill waits for did not come in {PATIENCE} s"
        time.sleep(random.uniform(0.0, 0.01))  # not always right after it was begun
    os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    assert os.WIFSIGNALED(status), f"a life ended by itself, with status {status}"


def main(folder: Path, seed: int, kills: int) -> None:
    """Every fourth kill comes at any time, the next between two checkpoints, the others while one is written; then a
    last life ends the run. Of two kills of a kind one finds a run that saves in the background, but for those between:
    a disk may be so slow that such a run always writes. Prints of how many kills a moment's found a checkpoint that
    this life had begun, and how far the run came."""
    torch.set_num_threads(1)
    trainer(folder / "never run")  # imports what a model needs
    warnings.simplefilter("error", DeprecationWarning)  # Python's, when it forks beside other threads
    draws, run, interrupted = random.Random(seed), folder / "killed", Counter()
    for number in range(kills):
        moment = ("any", "between", "writing", "writing")[number % 4]
        in_background = moment != "between" and number // 4 % 2 == 1
        left, newest = writing(run), newest_checkpoint(run)
        child = forked(lambda: live(run, save_async=in_background))  # noqa: B023  (called at once)
        if moment == "any":
            time.sleep(draws.uniform(0.0, 1.5))
            kill(child)
        elif moment == "between":
            kill(child, lambda: newest_checkpoint(run) != newest and not writing(run))  # noqa: B023
        else:
            later = time.monotonic() + draws.uniform(0.0, 0.5)
            kill(child, lambda: time.monotonic() > later and not writing(run) <= left)  # noqa: B023
        interrupted[moment] += not writing(run) <= left
    checkpoint = newest_checkpoint(run)
    reached = 0 if checkpoint is None else int(checkpoint.name)
    for each in (run, folder / "whole"):
        child = forked(lambda: live(each, reached + 2 * SAVE_EVERY))  # noqa: B023
        assert os.waitpid(child, 0)[1] == 0
    print(json.dumps({"while_writing": interrupted, "reached": reached}))


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
