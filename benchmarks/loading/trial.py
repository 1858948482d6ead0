"""One loader in a process of its own: starts it, then draws from it and weighs its workers, as it is told.

The process imports nothing of the other library. It prints one line of JSON once the first batch is there, and one
per command that it reads, until its input ends.
"""

import json
import multiprocessing
import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

SAMPLES = 10**9  # more than anybody draws


@dataclass(frozen=True)
class Setup:
    """What is loaded. library: `ours` or `lerobot`. frames, cache: of ours. context: how lerobot's workers start."""

    library: str
    root: str
    cache: str
    frames: str = "video"
    context: str = "spawn"
    workers: int = 0
    batch: int = 32
    seed: int = 0


Batches = Callable[[], Iterator[Any]]
"""Begins to draw."""


def ours(setup: Setup) -> Callable[[], Batches]:
    """Import vla_mot; what is returned constructs its loader."""
    from loading.window import CHUNK, OFFSET, VIEW
    from vla_mot.backbones.tokenizers import TextEncoder
    from vla_mot.data import stream
    from vla_mot.data.assignment import assign_exact
    from vla_mot.data.frames import FramesConfig
    from vla_mot.data.loader import Loader
    from vla_mot.data.mixture import resolve_mixture
    from vla_mot.data.mixture_config import Group, MixtureConfig
    from vla_mot.data.recipe import Recipe
    from vla_mot.data.windows import WindowConfig
    from vla_mot.robots.processor import Processor
    from vla_mot.robots.robot import Robot
    from vla_mot.robots.statistics_file import load_statistics

    def construct() -> Batches:
        root = Path(setup.root)
        config = MixtureConfig(root, {"all": Group("*", 1.0)}, embodiments=(root.parent / "robot.yaml",))
        entries = resolve_mixture(config).entries
        kind = entries[0].robot
        statistics = load_statistics(root.parent / "stats.json").pick(
            kind, action_mode="delta", chunk_size=CHUNK
        )
        encode = TextEncoder("byte", 48, 0, 256)
        recipe = Recipe(
            entries=entries,
            windows=(WindowConfig(CHUNK, OFFSET, VIEW),) * len(entries),
            processors={kind.name: Processor(Robot(kind, statistics), encode, VIEW, 32, 32)},
            frames=FramesConfig("cache" if setup.frames == "cache" else "video", Path(setup.cache)),
        )
        weights, costs = (
            [entry.weight for entry in entries],
            [2**20 + 160 * entry.frames for entry in entries],
        )
        names = [entry.name for entry in entries]
        shards = assign_exact(weights, costs, names, max(1, setup.workers))
        loader = Loader(stream.StreamConfig(recipe, shards, setup.batch, setup.seed), setup.workers)
        return lambda: loader.batches(prefetch=2 if setup.workers else 0)

    return construct


def lerobot(setup: Setup) -> Callable[[], Batches]:
    """Import lerobot; what is returned constructs its `MultiLeRobotDataset`, and torch's `DataLoader` around it."""
    import torch
    from lerobot.datasets.multi_dataset import MultiLeRobotDataset
    from torch.utils.data import DataLoader, RandomSampler

    from loading.window import ACTION, CAMERAS, CHUNK, FPS, OFFSET, VIEW
    from vla_mot.robots.images import resize_with_pad

    def construct() -> Batches:
        times = {camera: [-OFFSET / FPS, 0.0, OFFSET / FPS] for camera in CAMERAS}
        times[ACTION] = [step / FPS for step in range(CHUNK)]
        dataset = MultiLeRobotDataset(
            sorted(os.listdir(setup.root)),
            root=setup.root,
            image_transforms=partial(resize_with_pad, height=VIEW[0], width=VIEW[1]),
            delta_timestamps=times,
        )
        order = torch.Generator().manual_seed(setup.seed)
        several = {"multiprocessing_context": setup.context, "prefetch_factor": 4} if setup.workers else {}
        loader = DataLoader(
            dataset,
            setup.batch,
            sampler=RandomSampler(dataset, replacement=True, num_samples=SAMPLES, generator=order),
            num_workers=setup.workers,
            **several,
        )
        return lambda: iter(loader)

    return construct


def main() -> None:
    """Start, report, and obey."""
    setup = Setup(**json.loads(sys.argv[1]))
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # whatever a library prints
    begun = time.perf_counter()
    construct = {"ours": ours, "lerobot": lerobot}[setup.library](setup)
    imported = time.perf_counter()
    begin = construct()
    ready = time.perf_counter()
    batches = begin()
    next(batches)
    first = time.perf_counter()
    told = {"imports": imported - begun, "ready": ready - imported, "first": first - imported}
    print(json.dumps(told), file=answers)
    for line in sys.stdin:
        told = json.loads(line)
        done = weigh() if told.pop("do") == "weigh" else draw(batches, **told)
        print(json.dumps(done), file=answers)
    close = getattr(batches, "close", None)
    if close is not None:
        close()


def draw(batches: Iterator[Any], skip: int, seconds: float, step: float) -> dict[str, float]:
    """Take batches for that long, after as many as may be ready already.

    step: seconds that an accelerator would compute on each; the processor is free meanwhile.
    Returns the seconds of those, batches per second, and the share of the time that was spent waiting for data.
    """
    begun = time.perf_counter()
    for _ in range(skip):
        next(batches)
    waited, taken, start = 0.0, 0, time.perf_counter()
    while time.perf_counter() - start < seconds:
        asked = time.perf_counter()
        next(batches)
        waited, taken = waited + time.perf_counter() - asked, taken + 1
        time.sleep(step)
    whole = time.perf_counter() - start
    return {"skipped": start - begun, "rate": taken / whole, "waited": waited / whole}


def weigh() -> dict[str, float]:
    """Bytes of memory.

    private: of a data worker, the mean over them: what no other process shares and no file stands behind, so that
    ending the worker would give it back. everything: of this process and all that it started, what they share counted
    once.
    """
    workers = [child.pid for child in multiprocessing.active_children()]
    own = sum(_rollup(pid)["Private_Dirty"] for pid in workers if pid is not None)
    started = _descendants(os.getpid())
    return {"private": own / len(workers), "everything": sum(_rollup(pid)["Pss"] for pid in started)}


def _descendants(pid: int) -> list[int]:
    """A process and what it started, directly or not."""
    parents = {}
    for file in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):  # ended meanwhile
            parents[int(file.parent.name)] = int(file.read_text().rpartition(")")[2].split()[1])
    found = [pid]
    for one in found:
        found += [child for child, parent in parents.items() if parent == one]
    return found


def _rollup(pid: int) -> dict[str, int]:
    """The sums of proc_pid_smaps(5), in bytes."""
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()[1:]
    return {key.rstrip(":"): int(value) * 1024 for key, value, *_ in map(str.split, lines)}


if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).parents[1])  # not this folder: its names are for `loading`
    main()
