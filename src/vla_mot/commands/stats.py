"""`vla-mot data stats`: normalization statistics of one dataset, or of a mixture, per robot."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.markup import escape
from rich.table import Table

from vla_mot.commands import folders
from vla_mot.commands.console import console, progress, show_library_log
from vla_mot.commands.settings import section
from vla_mot.commands.training_settings import DataConfig
from vla_mot.data.mixture import Mixture, resolve_mixture
from vla_mot.data.mixture_statistics import MixtureStatistics, mixture_statistics
from vla_mot.data.partial_cache import default_folder
from vla_mot.data.partial_statistics import Chunks
from vla_mot.errors import ConfigError
from vla_mot.options import at_least
from vla_mot.robots.actions import DELTA
from vla_mot.robots.embodiment import Embodiment, Field
from vla_mot.robots.normalization import FeatureStatistics, Statistics
from vla_mot.robots.statistics_file import native_content

_COLUMNS = ("mean", "std", "q01", "q99", "min", "max")


@dataclass(frozen=True)
class StatsConfig:
    """See conf/stats.yaml."""

    data: DataConfig
    output: Path
    chunk_size: int
    jobs: int
    embodiment: Embodiment | None = None
    kept: Path | None = None

    def __post_init__(self) -> None:
        at_least(1, {"chunk_size": self.chunk_size, "jobs": self.jobs})
        if self.data.statistics is not None:
            raise ConfigError("data.statistics is what this command writes, to output=…; leave it out.")


def run(config: dict[str, Any], overrides: list[str]) -> None:
    """The command."""
    show_library_log()
    asked = section(StatsConfig, "", config)
    if asked.output.exists():
        raise ConfigError(f"output {asked.output} is already there. Choose another output=…, or remove it.")
    mixture = resolve_mixture(asked.data.mixture(asked.embodiment)).require_data()
    found = _counted(asked, mixture)
    for robot, statistics in zip(mixture.embodiments, found.statistics, strict=True):
        _show(robot, statistics, [entry.fps for entry in mixture.entries if entry.robot.name == robot.name])
    folders.write_facts(asked.output, native_content(found.statistics))
    console.print(f"statistics: {escape(str(asked.output))}")


def _counted(asked: StatsConfig, mixture: Mixture) -> MixtureStatistics:
    chunks = Chunks(asked.data.action_mode, asked.chunk_size)
    folder = asked.kept or default_folder()
    try:
        with progress("count") as advance:
            found = mixture_statistics(mixture, chunks, asked.data.split, folder, asked.jobs, advance)
    except KeyboardInterrupt:
        raise KeyboardInterrupt(
            f"Nothing was written to {asked.output}. Datasets that were counted are kept in {folder}: the same command "
            "goes on with the others."
        ) from None
    known = len(mixture.entries) - len(found.computed)
    if known:
        console.print(
            f"{known} of {len(mixture.entries)} datasets were counted before ({escape(str(folder))})"
        )
    return found


def _show(robot: Embodiment, statistics: Statistics, rates: list[float | None]) -> None:
    """Print what was counted of one robot, and its numbers."""
    origin, chunk = statistics.computed_on, statistics.chunk_size
    assert origin is not None
    frames, episodes = statistics.state.count, sum(dataset.episodes for dataset in origin.datasets)
    windows = f"{frames:,} windows of {chunk} steps, {statistics.action.count:,} of them inside the episodes"
    datasets = "1 dataset" if len(origin.datasets) == 1 else f"{len(origin.datasets)} datasets"
    console.print(
        f"{escape(robot.name)}: {datasets}, {episodes:,} episodes, {frames:,} frames; "
        f"{windows if robot.action_dim else 'no actions'}"
    )
    if len(different := sorted({rate for rate in rates if rate})) > 1:
        seconds = ", ".join(f"{chunk / rate:.3g} s at {rate:g} fps" for rate in different)
        console.print(f"  its datasets differ in their rate: {chunk} steps are {seconds}", style="yellow")
    state = list(_dimensions("state", robot.state, statistics.state, ""))
    relative = " less state" if statistics.action_mode == DELTA else ""
    action = list(_dimensions("action", robot.action, statistics.action, relative))
    if still := [each.name for each in (*state, *action) if each.numbers["std"] == 0]:
        told = escape(", ".join(still))
        console.print(f"  never changed, so any other value is far off: {told}", style="yellow")
    if state or action:
        console.print(_table(state, action))


@dataclass(frozen=True)
class _Dimension:
    """One dimension of a feature, and its numbers under the columns of the table."""

    name: str
    unit: str
    numbers: Mapping[str, float]


def _dimensions(
    kind: str, fields: tuple[Field, ...], numbers: FeatureStatistics, relative: str
) -> Iterator[_Dimension]:
    """relative: what is said of a delta dimension."""
    listed = [each for field in fields for each in zip(field.names, field.units, field.delta, strict=True)]
    known: Mapping[str, Any] = {**vars(numbers), **numbers.quantiles}
    for place, (name, unit, delta) in enumerate(listed):
        found = {column: float(known[column][place]) for column in _COLUMNS}
        yield _Dimension(f"{kind} {name}{relative if delta else ''}", unit, found)


def _table(*sections: Sequence[_Dimension]) -> Table:
    table = Table()
    for heading in ("dimension", "unit"):
        table.add_column(heading)
    for heading in _COLUMNS:
        table.add_column(heading, justify="right")
    for dimensions in sections:
        for each in dimensions:
            table.add_row(
                escape(each.name), escape(each.unit), *(f"{each.numbers[column]:.4g}" for column in _COLUMNS)
            )
        table.add_section()
    return table
