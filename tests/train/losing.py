"""Two ranks of which one is lost, in several ways: `python -m tests.train.losing FOLDER WAY…`.

What a rank said stands in `<FOLDER>/<way>/rank-<rank>.err`. How each ended, as its exit code or minus the signal, and
after how many seconds is printed as JSON.
"""

import json
import os
import shutil
import signal
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import torch
import torch.utils.tensorboard
from tests.train.forks import free_port, two_ranks
from tests.train.ranks import Share, ranked

from vla_mot.batch import Batch
from vla_mot.train.config import SafetyConfig
from vla_mot.train.stopping import StopRequests
from vla_mot.train.world import join

AT, STUCK_SECONDS = 3, 4.0


def sleeps_forever() -> None:
    """What the stack of the stuck rank must name."""
    time.sleep(300)


def fails() -> None:
    raise ZeroDivisionError("of rank 1 alone")


def in_the_way(checkpoints: Path) -> None:
    """The main rank cannot write its next checkpoint."""
    shutil.rmtree(checkpoints)
    checkpoints.write_text("a file where the folder should be")


Happens = Callable[[Path, Batch], object]
"""(the run's folder, rank 1's share of a batch) → nothing that counts."""
WAYS: dict[str, Happens] = {
    "dies": lambda run, batch: os.kill(os.getpid(), signal.SIGKILL),
    "fails": lambda run, batch: fails(),
    "hangs": lambda run, batch: sleeps_forever(),
    "is asked": lambda run, batch: os.kill(os.getpid(), signal.SIGTERM),
    "is spoilt": lambda run, batch: batch.observation.state.fill_(float("nan")),
    "is in the way": lambda run, batch: in_the_way(run / "checkpoints"),
}


class Losing(Share):
    """The batches of a rank, to one of which something happens before it arrives."""

    def __init__(self, rank: int, size: int, run: Path, happens: Happens) -> None:
        super().__init__(rank, size)
        self.run, self.happens = run, happens

    def batches(self, start: int = 0, stop: int | None = None, prefetch: int = 2) -> Iterator[Batch]:
        for step, batch in enumerate(super().batches(start, stop, prefetch), start=start):
            if step == AT:
                self.happens(self.run, batch)
            yield batch


def train(run: Path, rank: int, happens: Happens) -> None:
    """One rank of two. What it says goes to a file of its own."""
    run.mkdir(parents=True, exist_ok=True)
    said = os.open(run / f"rank-{rank}.err", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(said, 2)
    with join("cpu", 60.0) as world:
        life = ranked(run, world, safety=SafetyConfig(stuck_seconds=STUCK_SECONDS))
        life.stream = Losing(rank, world.size, run, happens if rank == 1 else lambda run, batch: None)
        with StopRequests() as stops:
            life.run(stop=lambda: stops.asked)


def main(folder: Path, ways: list[str]) -> None:
    """One way after the other."""
    torch.set_num_threads(1)
    found = {}
    for way in ways:
        started = time.monotonic()
        children = two_ranks(partial(train, folder / way, happens=WAYS[way]), free_port())
        codes = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
        found[way] = {"codes": codes, "seconds": time.monotonic() - started}
    print(json.dumps(found))


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
