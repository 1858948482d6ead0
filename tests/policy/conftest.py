"""A native checkpoint with random weights, for the conveyor's cameras, state and action."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.data.conftest import SIZE, square
from tests.model.tiny import tiny_model
from vla_mot.data.recorder import dataset_features, record_dataset
from vla_mot.hub.native import save_policy
from vla_mot.hub.spec import PolicySpec, SamplerConfig
from vla_mot.robots.embodiment import Embodiment
from vla_mot.robots.normalization import Statistics, summarize
from vla_mot.robots.robot import Robot

REPO_ID = "tests/conveyor"
HEAD, GRIPPER = "observation.images.head", "observation.images.gripper"
CHUNK, EXECUTED, OFFSET, SIDE = 4, 3, 3, 32  # steps, steps, frames, pixels


def make_embodiment() -> Embodiment:
    return Embodiment.from_dict(
        {
            "name": "conveyor",
            "fps": 10,
            "state": [
                {"key": "observation.state", "names": ["x", "y", "w", "held"], "units": ["m"] * 3 + ["1"]}
            ],
            "action": [
                {"key": "action", "names": ["x", "y", "w"], "units": ["m"] * 3, "delta": [True, True, False]}
            ],
            "cameras": [HEAD, GRIPPER, None],
        }
    )


def make_spec(model) -> PolicySpec:
    generator = torch.Generator().manual_seed(0)
    return PolicySpec(
        model=model.config,
        robots=(
            Robot(
                make_embodiment(),
                Statistics(
                    embodiment="conveyor",
                    action_mode="delta",
                    chunk_size=CHUNK,
                    state=summarize([torch.rand(50, 4, generator=generator)]),
                    action=summarize([torch.rand(50, 3, generator=generator) - 0.5]),
                ),
            ),
        ),
        sampler=SamplerConfig(num_steps=3, n_action_steps=EXECUTED),
    )


@pytest.fixture(scope="session")
def native(tmp_path_factory) -> Path:
    """Read only: tests that damage a checkpoint take `copied`."""
    folder = tmp_path_factory.mktemp("native") / "policy"
    model = tiny_model()
    save_policy(folder, make_spec(model), model.state_dict())
    return folder


@pytest.fixture
def copied(native, tmp_path) -> Path:
    return Path(shutil.copytree(native, tmp_path / "policy"))


@pytest.fixture(scope="session")
def dataset(tmp_path_factory) -> Path:
    """Three short episodes of the conveyor's features: the red square, the blue one, the red one."""
    random = np.random.default_rng(0)
    episodes = [
        [
            {
                HEAD: square(time, number),
                GRIPPER: square(time + 9, number + 1),
                "observation.state": random.normal(size=4).astype(np.float32),
                "action": random.normal(3.0, size=3).astype(np.float32),
                "task": f"pick the {('red', 'blue')[number % 2]} block",
            }
            for time in range(length)
        ]
        for number, length in enumerate((9, 7, 8))
    ]
    root = tmp_path_factory.mktemp("datasets") / "conveyor"
    record_dataset(root, REPO_ID, 10, dataset_features(make_embodiment(), SIZE, SIZE), episodes, "Conveyor")
    return root
