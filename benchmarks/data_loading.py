"""Training batches from many datasets: ours beside lerobot's `MultiLeRobotDataset`, on the same generated datasets.

Both give frames t − m, t, t + m of two cameras, resized to the same view, the state, and a chunk of actions, drawn at
random; docs/data_loading.md says what differs. Every figure comes from a process of its own; the loaders take turns,
so that a busy machine slows them alike, and medians over repeats are printed.

    python benchmarks/data_loading.py [scale=small|full] [repeats=3] [parts=race,memory,growth] [folder=…] [seed=0]

folder: where the datasets are made and kept; by default a temporary one, removed at the end (full: 5 GiB).
"""

import sys
import tempfile
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from common import describe_machine, head, parse_arguments, row, some_of, spread
from loading.generated import Shape, generate, robot
from loading.process import running
from loading.trial import Setup
from loading.window import CAMERAS, CHUNK, OFFSET, PIXELS, VIEW

from vla_mot.data.frame_cache import FrameCache
from vla_mot.data.source import Source
from vla_mot.errors import ConfigError, unknown_name

STEP = 0.1  # seconds of the stand-in for a training step
SKIP = 8  # batches that may be ready before anybody asks
MOST = (
    200  # datasets that lerobot is given: each takes it a quarter of a second to open, even the second time
)
MIB = 2**20
LOADERS = {
    "ours, frame cache": {"library": "ours", "frames": "cache"},
    "ours, from video": {"library": "ours", "frames": "video"},
    "MultiLeRobotDataset": {"library": "lerobot"},
}
FORKED = "MultiLeRobotDataset, fork"


@dataclass(frozen=True)
class Scale:
    """How much is measured. counts, growth: datasets. shape, long: of each, long for memory.

    workers: of the memory. seconds: of drawing, per figure. passes: how often each dataset is drawn before ours is
    weighed, on average.
    """

    counts: tuple[int, ...]
    shape: Shape
    seconds: float
    workers: tuple[int, ...]
    long: Shape
    passes: int
    growth: tuple[int, ...]


SCALES = {
    "small": Scale((4,), Shape(2, 40), 1.0, (2,), Shape(2, 100), 4, (4, 8)),
    "full": Scale((8, 200), Shape(4, 50), 4.0, (1, 2, 4, 8), Shape(20, 200), 7, (10, 100, 1000)),
}


def main() -> None:
    """Make the datasets, then measure and print one part after the other."""
    options = parse_arguments(
        sys.argv[1:], scale="small", repeats=3, parts="race,memory,growth", folder="", seed=0
    )
    parts = {"race": race, "memory": memory, "growth": growth}
    asked = some_of("part", options["parts"], parts)
    if options["scale"] not in SCALES:
        raise ConfigError(unknown_name("scale", options["scale"], SCALES))
    scale = SCALES[options["scale"]]
    print(describe_machine("cpu"))
    print(
        f"{scale.shape.total} frames per dataset ({scale.long.total} for memory), {len(CAMERAS)} cameras of "
        f"{PIXELS} px, views of {VIEW[0]}x{VIEW[1]}, m = {OFFSET}, chunks of {CHUNK}, float32, "
        f"batches of {Setup.batch}, {options['repeats']} repeats, seed {options['seed']}"
    )
    with _folder(options["folder"]) as folder:
        for part in asked:
            parts[part](scale, Bench(folder, options["seed"], options["repeats"]))


@dataclass(frozen=True)
class Bench:
    """Where the datasets lie, and how often is measured."""

    folder: Path
    seed: int
    repeats: int

    def setup(self, shape: Shape, count: int, **options) -> Setup:
        """A loader of `count` datasets, which are made where they are missing."""
        root = generate(self.folder, shape, count, self.seed)
        return Setup(root=str(root), cache=str(self.folder / "frames"), seed=self.seed, **options)

    def prepare(self, shape: Shape, count: int) -> None:
        """Do what either library does once per dataset, and say what it takes: frame caches, lerobot's arrow tables."""
        root = generate(self.folder, shape, count, self.seed)
        start = time.perf_counter()
        caches = [
            FrameCache.open(Source.open(place, robot()), VIEW, self.folder / "frames")
            for place in root.iterdir()
        ]
        built = time.perf_counter() - start
        size = sum(cache.folder.joinpath(cache.file).stat().st_size for cache in caches)
        said = f"once, {count} datasets: frame caches {built:.1f} s, {size / MIB:,.0f} MiB"
        if count <= MOST:
            with running(self.setup(shape, count, library="lerobot"), self.folder) as trial:
                said += f"; MultiLeRobotDataset, with its arrow tables {trial.started['ready']:.1f} s"
        print(said, flush=True)


def race(scale: Scale, bench: Bench) -> None:
    """Start-up, samples per second, and the share of waiting beside a step, with two data workers."""
    for count in scale.counts:
        bench.prepare(scale.shape, count)
    found: dict[tuple[int, str], list[dict[str, float]]] = {}
    for _, count, name in _turns(bench.repeats, scale.counts, LOADERS):
        setup = bench.setup(scale.shape, count, workers=2, **LOADERS[name])
        with running(setup, bench.folder) as trial:
            rate = trial.draw(SKIP, scale.seconds, 0.0)["rate"] * setup.batch
            waited = trial.draw(0, scale.seconds, STEP)["waited"]
            found.setdefault((count, name), []).append(trial.started | {"rate": rate, "waited": waited})
    print(f"\nTwo data workers; a step takes {1e3 * STEP:g} ms\n")
    head("datasets", "loader", "imports s", "ready s", "first batch s", "samples/s", "of waiting")
    for (count, name), told in found.items():
        seconds = [spread([one[key] for one in told], ".2f") for key in ("imports", "ready", "first")]
        rate, waited = ([one[key] for one in told] for key in ("rate", "waited"))
        row(count, name, *seconds, spread(rate, ".0f"), spread(waited, ".0%"))


def memory(scale: Scale, bench: Bench) -> None:
    """Resident memory per data worker, beside that of a worker which serves one dataset."""
    many = max(scale.counts)
    loaders = {name: LOADERS[name] for name in ("ours, from video", "MultiLeRobotDataset")}
    loaders |= {FORKED: {"library": "lerobot", "context": "fork"}}
    print(f"\nMiB of memory that is a worker's own; {scale.long.total} frames per dataset\n")
    head("loader", "workers", "1 dataset", f"{many} datasets", "net", "net × workers", "all processes, PSS")
    for name, told in loaders.items():
        for workers in scale.workers:
            one, all_of_them = (
                _weighed(bench.setup(scale.long, count, workers=workers, **told), bench, count * scale.passes)
                for count in (1, many)
            )
            net = (all_of_them["private"] - one["private"]) / MIB
            sums = f"{net * workers:.0f}", f"{all_of_them['everything'] / MIB:.0f}"
            row(
                name, workers, *(f"{w['private'] / MIB:.0f}" for w in (one, all_of_them)), f"{net:.1f}", *sums
            )


def _weighed(setup: Setup, bench: Bench, draws: int) -> dict[str, float]:
    """Memory once all datasets were drawn from; lerobot opens them all before the first batch."""
    batches = draws // setup.batch if setup.library == "ours" else 0
    with running(setup, bench.folder) as trial:
        trial.draw(batches + SKIP, 0.0, 0.0)
        return trial.weigh()


def growth(scale: Scale, bench: Bench) -> None:
    """What a sample costs as datasets grow in number, in one process: while datasets are opened, and later."""
    for count in scale.growth:
        bench.prepare(scale.shape, count)
    found: dict[tuple[int, str], list[dict[str, float]]] = {}
    for _, count, name in _turns(bench.repeats, scale.growth, LOADERS):
        setup = bench.setup(scale.shape, count, **LOADERS[name])
        if setup.library == "lerobot" and count > MOST:
            continue
        with running(setup, bench.folder) as trial:
            opening = max(1, min(count, 256) * 4 // setup.batch)
            drawn = trial.draw(opening, scale.seconds, 0.0)
            costs = {"early": drawn["skipped"] / opening, "later": 1 / drawn["rate"]}
            told = trial.started | {key: 1e3 * cost / setup.batch for key, cost in costs.items()}
            found.setdefault((count, name), []).append(told)
    print(
        "\nNo data workers; ms per sample of the first 4 draws per dataset (of 256 at most), and after them\n"
    )
    head("datasets", "loader", "ready s", "first batch s", "ms first", "ms later")
    for (count, name), told in found.items():
        keys = ("ready", "first", "early", "later")
        row(count, name, *(spread([one[key] for one in told], ".2f") for key in keys))


def _turns(repeats: int, counts: Sequence[int], names: Iterable[str]) -> Iterator[tuple[int, int, str]]:
    """(repeat, datasets, loader), the loaders in turn."""
    names = list(names)
    return ((repeat, count, name) for repeat in range(repeats) for count in counts for name in names)


@contextmanager
def _folder(wanted: str) -> Iterator[Path]:
    if wanted:
        Path(wanted).mkdir(parents=True, exist_ok=True)
        yield Path(wanted).resolve()
    else:
        with tempfile.TemporaryDirectory(prefix="data-loading-") as made:
            yield Path(made)


if __name__ == "__main__":
    main()
