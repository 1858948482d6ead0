"""What asks a trainer to stop is sent to all processes of its job, and its data workers go on."""

import multiprocessing
import os
import signal
from pathlib import Path

import pytest

from tests.data.mixed import ROBOTS, Mixed, record
from tests.data.test_loader import alive, children, take, wait_until
from tests.data.test_stream import same


def mixture(folder: Path) -> Mixed:
    for name in ROBOTS:
        record(folder / "datasets", name)
    return Mixed(folder / "datasets", folder / "frames")


@pytest.mark.multiprocess
def test_what_asks_a_trainer_to_stop_does_not_end_its_workers(tmp_path):
    """Launchers and schedulers send it to all processes; the trainer still has a step to end."""
    mixed = mixture(tmp_path)
    loader = mixed.loader(workers=2)
    here = take(mixed.loader(), 0, 12)
    batches = loader.batches(0, 12)
    there = [next(batches)]
    servers, workers = fork_servers(), children()
    assert len(workers) == 2
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2):
        for pid in [*servers, *workers]:
            os.kill(pid, number)
    there += batches
    assert all(same(a, b) for a, b in zip(here, there, strict=True))
    assert wait_until(lambda: not any(alive(pid) for pid in workers), seconds=10)


@pytest.mark.multiprocess
@pytest.mark.slow
def test_a_trainer_that_ends_in_the_midst_takes_its_workers_along(tmp_path):
    """Its batches stay open, as they do in the traceback of what ended it."""
    trainer = multiprocessing.get_context("spawn").Process(
        target=_fail, args=(mixture(tmp_path).loader(workers=1),)
    )
    trainer.start()
    trainer.join(timeout=60)
    assert trainer.exitcode == 1
    assert wait_until(lambda: not children(trainer.pid), seconds=10)


def _fail(loader) -> None:
    opened.append(loader.batches(0))
    next(opened[0])
    raise SystemExit(1)


opened = []


def fork_servers() -> list[int]:
    """The parents of the data workers."""
    found = set()
    for pid in children():
        with open(f"/proc/{pid}/stat") as file:
            found.add(int(file.read().rsplit(")", 1)[1].split()[1]))
    return sorted(found)
