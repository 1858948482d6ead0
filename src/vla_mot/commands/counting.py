"""The robots of a mixture with their statistics: read from a file, or counted on the training episodes."""

from vla_mot.commands.console import progress
from vla_mot.commands.training_settings import DataConfig
from vla_mot.data.mixture import Mixture
from vla_mot.data.mixture_statistics import mixture_statistics
from vla_mot.data.partial_cache import default_folder
from vla_mot.data.partial_statistics import Chunks
from vla_mot.robots.robot import Robot
from vla_mot.robots.statistics_file import load_statistics


def robots_of(mixture: Mixture, data: DataConfig, chunk_size: int) -> tuple[Robot, ...]:
    """Every robot of the mixture, in the order of their names.

    Raises ConfigError when the file has no statistics of a robot, or has them for another mode or chunk length.
    """
    if data.statistics is not None:
        known = load_statistics(data.statistics, data.action_mode, chunk_size)
        return tuple(
            Robot(body, known.pick(body, data.action_mode, chunk_size)) for body in mixture.embodiments
        )
    chunks = Chunks(data.action_mode, chunk_size)
    with progress("count") as advance:
        counted = mixture_statistics(mixture, chunks, data.split, default_folder(), 1, advance)
    return tuple(map(Robot, mixture.embodiments, counted.statistics))
