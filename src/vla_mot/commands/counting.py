"""The robots of a mixture with their statistics: read from a file, or counted on the training episodes."""

from vla_mot.commands.console import progress
from vla_mot.commands.training_settings import DataConfig
from vla_mot.data.faults import Fault, FaultBudget
from vla_mot.data.mixture import Mixture
from vla_mot.data.mixture_statistics import mixture_statistics
from vla_mot.data.partial_cache import default_folder
from vla_mot.data.partial_statistics import Chunks
from vla_mot.data.source import Source
from vla_mot.errors import DatasetError
from vla_mot.robots.robot import Robot
from vla_mot.robots.statistics_file import load_statistics


def _countable(mixture: Mixture, skip_broken: int) -> Mixture:
    """Without datasets whose tables cannot be read, as many as may be skipped; the stream counts and names them too."""
    if not skip_broken:
        return mixture
    budget = FaultBudget(skip_broken, [entry.name for entry in mixture.entries])
    kept = []
    for number, entry in enumerate(mixture.entries):
        assert entry.root is not None, f"{entry.name} is only declared"
        try:
            Source.open(entry.root, entry.robot, missing="report")
        except DatasetError as error:
            budget.add([Fault(number, None, " ".join(str(error).split()))])
            continue
        kept.append(entry)
    return Mixture(tuple(kept))


def robots_of(mixture: Mixture, data: DataConfig, chunk_size: int) -> tuple[Robot, ...]:
    """Every robot of the mixture, in the order of their names.

    Raises ConfigError when the file has no statistics of a robot, or has them for another mode or chunk length.
    """
    if data.statistics is not None:
        known = load_statistics(data.statistics, data.action_mode, chunk_size)
        return tuple(
            Robot(body, known.pick(body, data.action_mode, chunk_size)) for body in mixture.embodiments
        )
    chunks, mixture = Chunks(data.action_mode, chunk_size), _countable(mixture, data.skip_broken)
    with progress("count") as advance:
        counted = mixture_statistics(mixture, chunks, data.split, default_folder(), 1, advance)
    return tuple(map(Robot, mixture.embodiments, counted.statistics))
