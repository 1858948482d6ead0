"""A mixture of three tiny datasets: two robots of different widths and cameras, and videos without actions."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from tests.data.conftest import SIZE, TASKS, square, toy_embodiment
from vla_mot.data.assignment import assign_exact
from vla_mot.data.frames import FramesConfig
from vla_mot.data.loader import Loader
from vla_mot.data.mixture import Mixture, resolve_mixture
from vla_mot.data.mixture_config import Group, MixtureConfig
from vla_mot.data.recipe import Recipe, SplitConfig
from vla_mot.data.recorder import dataset_features, record_dataset
from vla_mot.data.source import Source
from vla_mot.data.statistics import compute_statistics
from vla_mot.data.stream import StreamConfig
from vla_mot.data.windows import WindowConfig
from vla_mot.robots.embodiment import Embodiment
from vla_mot.robots.processor import Processor
from vla_mot.robots.robot import Robot

VIEW = (24, 24)
WEIGHTS = {"arms": 0.5, "wheels": 0.3, "people": 0.2}
LENGTHS = {"arms": (15, 9, 12), "wheels": (21, 8), "people": (14, 10)}

ARMS = toy_embodiment(name="arms")
WHEELS = Embodiment.from_dict(
    {
        "name": "wheels",
        "fps": 5,
        "state": [{"key": "observation.state", "names": ["heading"], "units": ["rad"]}],
        "action": [{"key": "action", "names": ["left", "right"], "units": ["rad/s"] * 2}],
        "cameras": ["observation.images.front"],
    }
)
PEOPLE = Embodiment.from_dict(
    {"name": "people", "fps": 10, "state": [], "action": [], "cameras": ["observation.images.eyes"]}
)
ROBOTS = {robot.name: robot for robot in (ARMS, WHEELS, PEOPLE)}


def record(root: Path, name: str) -> None:
    """One of the three, under its name."""
    robot, random = ROBOTS[name], np.random.default_rng(len(name))
    pictures = [key for _, key in robot.present_cameras]

    def frame(time: int, episode: int) -> dict:
        vectors = {
            f.key: random.normal(size=len(f.names)).astype(np.float32) for f in (*robot.state, *robot.action)
        }
        seen = {key: square(time, episode + place) for place, key in enumerate(pictures)}
        return seen | vectors | {"task": TASKS[episode % 2]}

    episodes = [[frame(t, number) for t in range(n)] for number, n in enumerate(LENGTHS[name])]
    features = dataset_features(robot, SIZE, SIZE)
    record_dataset(root / name, f"tests/{name}", int(robot.fps or 0), features, episodes, name)


def tokenize(texts: Sequence[str]) -> tuple[Tensor, Tensor]:
    """At the top of a module, so that it pickles."""
    rows = [list(text.encode()) for text in texts]
    ids = torch.tensor([row + [0] * (24 - len(row)) for row in rows])
    return ids, ids > 0


@dataclass(frozen=True)
class Mixed:
    """The mixture on disk, ready to be drawn from."""

    root: Path
    frames: Path
    mixture: Mixture = field(init=False)
    recipe: Recipe = field(init=False)

    def __post_init__(self) -> None:
        yamls = [self.root / f"{name}.yaml" for name in ROBOTS]
        for path in yamls:
            path.write_text(json.dumps(ROBOTS[path.stem].to_dict()))
        groups = {name: Group(name, weight) for name, weight in WEIGHTS.items()}
        mixture = resolve_mixture(MixtureConfig(self.root, groups, embodiments=tuple(yamls)))
        processors = {}
        for entry in mixture.entries:
            statistics = compute_statistics(Source.open(entry.root, entry.robot), 4, "delta")
            robot = Robot(entry.robot, statistics)
            processors[entry.robot.name] = Processor(robot, tokenize, VIEW, 5, 6, slots=3)
        windows = tuple(WindowConfig(4, entry.robot.frames(seconds=0.4), VIEW) for entry in mixture.entries)
        object.__setattr__(self, "mixture", mixture)
        recipe = Recipe(
            mixture.entries, windows, processors, FramesConfig(folder=self.frames), SplitConfig(0.0)
        )
        object.__setattr__(self, "recipe", recipe)

    def stream(self, global_batch: int = 12, shards: int = 4, **options) -> StreamConfig:
        entries = self.mixture.entries
        assignment = assign_exact(
            [e.weight for e in entries], [e.frames for e in entries], [e.name for e in entries], shards
        )
        return StreamConfig(options.pop("recipe", self.recipe), assignment, global_batch, **options)

    def loader(self, workers: int = 0, skip_broken: int = 0, **options) -> Loader:
        return Loader(self.stream(skip_broken=skip_broken > 0, **options), workers, skip_broken)
