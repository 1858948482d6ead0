"""Statistics of every robot of a mixture, over all of its datasets."""

from dataclasses import dataclass
from pathlib import Path

from vla_mot.data.mixture import Entry, Mixture
from vla_mot.data.partial_statistics import Chunks
from vla_mot.data.recipe import SplitConfig
from vla_mot.data.statistics import merge_partials
from vla_mot.data.statistics_jobs import Advance, Task, count_datasets
from vla_mot.robots.normalization import Statistics


@dataclass(frozen=True)
class MixtureStatistics:
    """statistics: of every robot, in the order of their names. computed: datasets that were not found counted."""

    statistics: tuple[Statistics, ...]
    computed: frozenset[str]


def mixture_statistics(
    mixture: Mixture,
    chunks: Chunks,
    split: SplitConfig,
    folder: Path,
    jobs: int = 1,
    advance: Advance | None = None,
) -> MixtureStatistics:
    """Count the training episodes of every dataset, each row once, and merge them per robot.

    The mixture's weights play no part: another mixture of the same datasets has the same statistics. folder: where
    counted datasets are kept. jobs, advance: see `count_datasets`.
    Raises DatasetError or ConfigError for datasets that cannot be read, and two robots of one name.
    """
    robots = mixture.require_data().embodiments
    tasks = [_task(entry, split) for entry in mixture.entries]
    counted = count_datasets(tasks, chunks, folder, jobs, advance)
    found = []
    for robot in robots:
        mine = [entry.name for entry in mixture.entries if entry.robot.name == robot.name]
        found.append(merge_partials(robot, chunks, {name: counted.partials[name] for name in mine}))
    return MixtureStatistics(tuple(found), counted.computed)


def _task(entry: Entry, split: SplitConfig) -> Task:
    assert entry.root is not None and entry.episodes is not None
    chosen, _ = split.episodes(entry.episodes)
    return Task(entry.name, entry.root, entry.robot, entry.frames, chosen)
