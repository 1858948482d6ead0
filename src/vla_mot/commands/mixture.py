"""`vla-mot data mixture`: what a mixture resolves to, and what every data worker is assigned of it."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from rich.markup import escape
from rich.table import Table

from vla_mot.commands import folders
from vla_mot.commands.console import console
from vla_mot.commands.mixing import assign
from vla_mot.commands.settings import section
from vla_mot.commands.training_settings import DataConfig
from vla_mot.data.assignment import Assignment, shards_of
from vla_mot.data.mixture import Entry, Mixture, resolve_mixture
from vla_mot.data.recipe import SplitConfig
from vla_mot.errors import ConfigError
from vla_mot.options import at_least
from vla_mot.robots.embodiment import Embodiment


@dataclass(frozen=True)
class MixtureCommand:
    """See conf/mixture.yaml."""

    data: DataConfig
    steps: int
    batch_size: int
    ranks: int
    rows: int
    embodiment: Embodiment | None = None
    manifest: Path | None = None

    def __post_init__(self) -> None:
        at_least(1, {name: getattr(self, name) for name in ("steps", "batch_size", "ranks", "rows")})

    @property
    def samples(self) -> int:
        """Of the whole training."""
        return self.steps * self.batch_size

    @property
    def workers(self) -> int:
        """Of all ranks."""
        return self.ranks * max(1, self.data.workers)


def run(config: dict[str, Any], overrides: list[str]) -> None:
    """The command."""
    asked = section(MixtureCommand, "", config)
    if asked.manifest is not None and asked.manifest.exists():
        raise ConfigError(f"manifest {asked.manifest} is already there. Choose another one, or remove it.")
    mixture = resolve_mixture(asked.data.mixture(asked.embodiment))
    console.print(_groups(mixture, asked))
    if any(entry.root for entry in mixture.entries):
        console.print(_datasets(mixture, asked))
    _show_assignment(mixture, assign(mixture, asked.data, asked.workers), asked)
    if asked.manifest is not None:
        folders.write_facts(asked.manifest, {"datasets": mixture.require_data().manifest()})
        console.print(f"manifest: {escape(str(asked.manifest))}")


def _groups(mixture: Mixture, asked: MixtureCommand) -> Table:
    table = _table("group", ("weight", "datasets", "frames", "hours", "epochs"))
    for group in dict.fromkeys(entry.group for entry in mixture.entries):
        mine = [entry for entry in mixture.entries if entry.group == group]
        count = str(len(mine)) if mine[0].root else "declared"
        table.add_row(escape(group or mine[0].name), *_numbers(mine, count, asked))
    table.add_section()
    table.add_row("all", *_numbers(mixture.entries, str(len(mixture.entries)), asked))
    table.title = f"Mixture, epochs after {asked.steps:,} steps of {asked.batch_size} samples"
    if asked.data.validation_fraction:
        table.title += ", over what is not held out"
    return table


def _numbers(entries: Sequence[Entry], count: str, asked: MixtureCommand) -> list[str]:
    weight, frames = sum(e.weight for e in entries), sum(e.frames for e in entries)
    return [
        f"{weight:.4f}",
        count,
        f"{frames:,}",
        _hours(entries),
        f"{weight * asked.samples / sum(_training_frames(e, asked.data.split) for e in entries):.3g}",
    ]


def _training_frames(entry: Entry, split: SplitConfig) -> float:
    """Those that are not held out, as if all episodes of a dataset were equally long: only their number is known."""
    try:
        return entry.frames * _training_share(entry.episodes, split)
    except ConfigError as error:
        raise ConfigError(f"dataset {entry.name}: {error}") from error


@lru_cache(maxsize=4096)
def _training_share(episodes: int | None, split: SplitConfig) -> float:
    return 1 - split.fraction if episodes is None else len(split.episodes(episodes)[0]) / episodes


def _hours(entries: Iterable[Entry]) -> str:
    hours = [entry.hours for entry in entries]
    return "unknown" if None in hours else f"{sum(hour for hour in hours if hour is not None):,.2f}"


def _datasets(mixture: Mixture, asked: MixtureCommand) -> Table:
    table = _table("dataset", ("robot", "weight", "frames", "fps", "hours", "epochs"))
    shown = sorted(mixture.entries, key=lambda entry: (-entry.weight, entry.name))[: asked.rows]
    for entry in shown:
        epochs = entry.weight * asked.samples / _training_frames(entry, asked.data.split)
        table.add_row(
            escape(entry.name),
            escape(entry.robot.name),
            f"{entry.weight:.6f}",
            f"{entry.frames:,}",
            f"{entry.fps:g}" if entry.fps else "",
            _hours([entry]),
            f"{epochs:.3g}",
        )
    if left := len(mixture.entries) - len(shown):
        table.add_row(f"… {left} more (rows={len(mixture.entries)})", *[""] * 6)
    return table


def _show_assignment(mixture: Mixture, assignment: Assignment, asked: MixtureCommand) -> None:
    """Say what workers hold, and how far the mixture that comes out is from what was asked for."""
    shards, workers = len(assignment.shards), asked.workers
    asked_for = np.array([entry.weight for entry in mixture.entries])
    off = np.abs(assignment.realised() / asked_for - 1).max()
    held = [assignment.datasets_of(shards_of(worker, workers, shards)) for worker in range(workers)]
    frames = [
        sum(
            (stop - start) * _training_frames(mixture.entries[dataset], asked.data.split)
            for dataset, spans in assignment.spans(shards_of(worker, workers, shards)).items()
            for start, stop in spans
        )
        for worker in range(workers)
    ]
    console.print(
        f"assignment  {asked.data.assignment}: {_some(shards, 'shard')} for {_some(workers, 'worker')}; a worker holds "
        f"{_span(map(len, held), 'dataset')}, {_span(frames, 'frame')}"
    )
    console.print(f"realised    no weight differs from what was asked for by more than {off:.2g} of it")


def _some(count: int, thing: str) -> str:
    return f"{count:,} {thing}{'' if count == 1 else 's'}"


def _span(counts: Iterable[float], thing: str) -> str:
    """The least and the most of several counts, or the one that all are."""
    whole = [round(count) for count in counts]
    least, most = min(whole), max(whole)
    return _some(most, thing) if least == most else f"{least:,} to {_some(most, thing)}"


def _table(first: str, numbers: Sequence[str]) -> Table:
    table = Table(title_justify="left")
    table.add_column(first)
    for heading in numbers:
        table.add_column(heading, justify="left" if heading == "robot" else "right")
    return table
