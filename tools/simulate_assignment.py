"""The assignment at full size: 692 million frames in thousands of datasets over up to 4096 workers, in seconds.

    python tools/simulate_assignment.py [workers=8,64,512,4096] [datasets=3000] [spread=1.0] [exponent=1.0] [seed=0]
        [shards=0] [dataset_bytes=524288] [frame_bytes=124]

Frames and weights of the five sources are those of the paper's Table 3. How many datasets each has is made up, and so
are their sizes: log-normal, with `spread` the standard deviation of the logarithm. Weights within a source are shared
by frames^exponent. shards: 0 for as many as there are workers. An open dataset costs `dataset_bytes`, and `frame_bytes`
for every frame that is held: those that a worker draws from, and, for comparison, all of the datasets that it opens.
Prints the table of docs/assignment.md.
"""

import math
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date

import numpy as np

from vla_mot.data.assignment import Assignment, assign_exact, assign_lpt, shards_of
from vla_mot.errors import ConfigError, unknown_name
from vla_mot.evaluate.machine import describe_machine

DEFAULTS: dict[str, int | float | str] = {
    "workers": "8,64,512,4096",
    "datasets": 3000,
    "spread": 1.0,
    "exponent": 1.0,
    "seed": 0,
    "shards": 0,
    "dataset_bytes": 2**19,
    "frame_bytes": 124,
}
# Source: millions of frames and weight (Table 3), and its assumed part of the number of datasets.
SOURCES = {
    "InternData-A1": (396, 0.64, 0.6),
    "RoboTwin": (17, 0.08, 0.05),
    "AgiBotWorld-Beta": (206, 0.18, 0.15),
    "RoboMIND": (5, 0.02, 0.1),
    "EgoDex": (68, 0.08, 0.1),
}
HEADER = (
    "rule",
    "workers",
    "most frames ÷ fair share",
    "datasets per worker, mean / most",
    "MiB held, mean / most",
    "MiB of whole datasets, mean / most",
    "pieces",
    "datasets with several workers",
    "error, worst dataset",
    "error, worst source",
    "seconds",
)


@dataclass(frozen=True)
class Simulated:
    """A made-up mixture, `(D,)` each: names, frames, probabilities, and the place of each one's source."""

    names: list[str]
    frames: np.ndarray
    masses: np.ndarray
    source: np.ndarray


def simulate(datasets: int, spread: float, exponent: float, seed: int) -> Simulated:
    """Draw datasets for every source, at least one each, with exactly its frames and its weight."""
    rng = np.random.default_rng(seed)
    names, frames, masses, source = [], [], [], []
    for place, (name, (millions, weight, part)) in enumerate(SOURCES.items()):
        count = max(1, round(part * datasets))
        sizes = rng.lognormal(0, spread, count)
        sizes = np.maximum(1, np.round(sizes / sizes.sum() * millions * 1e6))
        sizes[sizes.argmax()] += millions * 1e6 - sizes.sum()
        shares = sizes**exponent
        names += [f"{name}/{i:05d}" for i in range(count)]
        frames.append(sizes)
        masses.append(weight * shares / shares.sum())
        source.append(np.full(count, place))
    return Simulated(names, np.concatenate(frames), np.concatenate(masses), np.concatenate(source))


def row(rule: str, mixture: Simulated, workers: int, options: dict) -> list[str]:
    """One line of the table."""
    shards = options["shards"] or workers
    started = time.perf_counter()
    if rule == "exact":
        costs = options["dataset_bytes"] + options["frame_bytes"] * mixture.frames
        assignment = assign_exact(mixture.masses, costs, mixture.names, shards)
    else:
        assignment = assign_lpt(mixture.frames, mixture.masses, mixture.names, shards)
    seconds = time.perf_counter() - started
    frames, whole, opened = held(assignment, mixture, workers)
    memory, all_of_it = (
        (options["dataset_bytes"] * opened + options["frame_bytes"] * f) / 2**20 for f in (frames, whole)
    )
    holders = np.bincount(
        [d for w in range(workers) for d in assignment.datasets_of(shards_of(w, workers, shards))],
        minlength=len(mixture.names),
    )
    realised = assignment.realised()
    totals = [np.bincount(mixture.source, weights) for weights in (realised, mixture.masses)]
    return [
        rule,
        f"{workers}",
        f"{frames.max() / (mixture.frames.sum() / workers):.3f}",
        f"{opened.mean():.1f} / {opened.max()}",
        f"{memory.mean():.0f} / {memory.max():.0f}",
        f"{all_of_it.mean():.0f} / {all_of_it.max():.0f}",
        f"{sum(map(len, assignment.shards))}",
        f"{(holders > 1).sum()}",
        _percent(np.abs(realised / mixture.masses - 1).max()),
        _percent(np.abs(totals[0] / totals[1] - 1).max()),
        f"{seconds:.2f}",
    ]


def _percent(error: float) -> str:
    """A relative error; what is only rounding stays in view as such."""
    return f"{error:.0e}" if error < 1e-6 else f"{100 * error:.3g} %"


def held(assignment: Assignment, mixture: Simulated, workers: int) -> tuple[np.ndarray, ...]:
    """Per worker, `(W,)` each: frames that it draws from, frames of the datasets that these lie in, datasets."""
    found = []
    for worker in range(workers):
        spans = assignment.spans(shards_of(worker, workers, len(assignment.shards)))
        parts = {d: math.fsum(stop - start for start, stop in runs) for d, runs in spans.items()}
        frames = math.fsum(mixture.frames[d] * part for d, part in parts.items())
        found.append((frames, mixture.frames[list(parts)].sum(), len(parts)))
    frames, whole, opened = np.array(found).T
    return frames, whole, opened.astype(int)


def parse(words: Sequence[str]) -> dict:
    """`key=value` words over the defaults. Raises ConfigError for an unknown key."""
    options: dict = dict(DEFAULTS)
    for word in words:
        key, _, value = word.partition("=")
        if key not in DEFAULTS:
            raise ConfigError(unknown_name("argument", key, DEFAULTS))
        options[key] = type(DEFAULTS[key])(value)
    return options


def main(words: Sequence[str]) -> None:
    """Print what was simulated, where, and one table of both rules."""
    options = parse(words)
    mixture = simulate(*(options[key] for key in ("datasets", "spread", "exponent", "seed")))
    facts = describe_machine()
    print(f"`python tools/simulate_assignment.py {' '.join(words)}`".replace(" `", "`"))
    print(f"{date.today()}, seed {options['seed']}, {facts['processor']}, usable cores: {facts['cores']}.")
    print(
        f"{mixture.frames.sum():,.0f} frames in {len(mixture.names):,} datasets of {mixture.frames.min():,.0f} to "
        f"{mixture.frames.max():,.0f} frames (median {np.median(mixture.frames):,.0f}).\n"
    )
    print("| " + " | ".join(HEADER) + " |\n" + "|---" * len(HEADER) + "|")
    for rule in ("exact", "lpt"):
        for workers in map(int, options["workers"].split(",")):
            print("| " + " | ".join(row(rule, mixture, workers, options)) + " |", flush=True)


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except ConfigError as error:
        raise SystemExit(f"error: {error}") from None
