from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch

from vla_mot.data.frame_cache import FrameCache
from vla_mot.data.recorder import dataset_features, record_dataset
from vla_mot.data.source import Source
from vla_mot.data.statistics import compute_statistics
from vla_mot.robots.embodiment import Embodiment
from vla_mot.robots.processor import Processor
from vla_mot.robots.robot import Robot

SIZE = 48  # pixels of the recorded pictures
VIEW = (32, 40)  # (height, width) of the model's view: padded left and right
LENGTHS = (20, 13, 20, 7)  # frames of each episode
TASKS = ("pick the red block", "pick the blue block")
HEAD, GRIPPER = "observation.images.head", "observation.images.gripper"


@dataclass(frozen=True)
class Recording:
    """A dataset on disk and what was written into it."""

    root: Path
    embodiment: Embodiment
    episodes: list[list[dict]]

    def column(self, key: str) -> np.ndarray:
        return np.stack([frame[key] for episode in self.episodes for frame in episode])


def toy_embodiment(**changes) -> Embodiment:
    """Two cameras with an absent slot between them, a state of two features, an action with an absolute gripper."""
    spec = {
        "name": "toy",
        "fps": 10,
        "state": [
            {"key": "observation.state", "names": ["x", "y", "z"], "units": ["m", "m", "m"]},
            {"key": "observation.gripper", "names": ["gripper"], "units": ["m"]},
        ],
        "action": [
            {
                "key": "action",
                "names": ["x", "y", "gripper"],
                "units": ["m"] * 3,
                "delta": [True, True, False],
            }
        ],
        "cameras": [HEAD, None, GRIPPER],
    }
    return Embodiment.from_dict(spec | changes)


def square(time: int, seed: int) -> np.ndarray:
    """A coloured square that moves by a fraction of a pixel per frame, with soft edges: `(H, W, 3)` uint8."""
    rows, columns = np.mgrid[:SIZE, :SIZE]
    centre = (20 + 0.7 * time * (-1) ** seed, 15 + 5 * (seed % 4))
    cover = np.clip(6 - np.maximum(abs(columns - centre[0]), abs(rows - centre[1])), 0, 1)[..., None]
    colour = np.array([(220, 40, 40), (40, 70, 220)][seed % 2])
    return ((1 - cover) * np.array([205, 205, 200]) + cover * colour).astype(np.uint8)


def toy_episodes() -> Iterator[list[dict]]:
    random = np.random.default_rng(0)
    for number, length in enumerate(LENGTHS):
        yield [
            {
                HEAD: square(time, number),
                GRIPPER: square(time + 9, number + 1),
                "observation.state": random.normal(size=3).astype(np.float32),
                "observation.gripper": random.normal(size=1).astype(np.float32),
                "action": random.normal(3.0, size=3).astype(np.float32),
                "task": TASKS[number % 2],
            }
            for time in range(length)
        ]


@pytest.fixture(scope="session")
def recording(tmp_path_factory) -> Recording:
    embodiment, episodes = toy_embodiment(), list(toy_episodes())
    root = tmp_path_factory.mktemp("datasets") / "toy"
    record_dataset(root, "tests/toy", 10, dataset_features(embodiment, SIZE, SIZE), episodes)
    return Recording(root, embodiment, episodes)


@pytest.fixture(scope="session")
def source(recording) -> Source:
    return Source.open(recording.root, recording.embodiment)


@pytest.fixture(scope="session")
def cache(source, tmp_path_factory) -> FrameCache:
    return FrameCache.open(source, VIEW, tmp_path_factory.mktemp("frames"))


@pytest.fixture(scope="session")
def processor(source) -> Processor:
    def tokenize(instructions):
        rows = [list(text.encode()) for text in instructions]
        width = 24
        ids = torch.tensor([row + [0] * (width - len(row)) for row in rows])
        return ids, ids > 0

    statistics = compute_statistics(source, chunk_size=5, action_mode="delta")
    return Processor(Robot(source.embodiment, statistics), tokenize, VIEW, state_width=8, action_width=6)
