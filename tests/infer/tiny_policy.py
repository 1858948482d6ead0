"""A complete policy with random weights for the conveyor robot, small enough to run in every test."""

from typing import Any

import torch
from torch import Tensor

from tests.model.tiny import tiny_model
from vla_mot.hub.spec import PolicySpec, SamplerConfig
from vla_mot.infer.policy import Policy
from vla_mot.robots.catalog import find_embodiment
from vla_mot.robots.embodiment import Embodiment
from vla_mot.robots.normalization import FeatureStatistics, Statistics
from vla_mot.robots.robot import Robot

HEAD, GRIPPER = "observation.images.head", "observation.images.gripper"
SIZE = 32  # pixels


def conveyor_embodiment() -> Embodiment:
    """The demo robot: position targets that are deltas, an absolute aperture, and an absent third camera."""
    return Embodiment.from_dict(
        {
            "name": "conveyor",
            "fps": 10,
            "state": [
                {
                    "key": "observation.state",
                    "names": ["x", "y", "aperture", "grip"],
                    "units": ["m", "m", "m", "1"],
                }
            ],
            "action": [
                {
                    "key": "action",
                    "names": ["x", "y", "aperture"],
                    "units": ["m"] * 3,
                    "delta": [True, True, False],
                }
            ],
            "cameras": [HEAD, GRIPPER, None],
        }
    )


def statistics(mean: list[float], std: list[float]) -> FeatureStatistics:
    mean_t, std_t = torch.tensor(mean), torch.tensor(std)
    return FeatureStatistics(mean_t, std_t, mean_t - 2 * std_t, mean_t + 2 * std_t, 100)


def known_robot(name: str, chunk_size: int, action_mode: str = "delta") -> Robot:
    """A robot of conf/embodiment/ with made-up statistics."""
    body = find_embodiment(name)
    assert body is not None
    state, action = (statistics([0.1] * n, [0.05] * n) for n in (body.state_dim, body.action_dim))
    return Robot(body, Statistics(name, action_mode, chunk_size, state, action))


def tiny_policy(
    seed: int = 0, *, n_action_steps: int = 3, action_mode: str = "delta", **model: Any
) -> Policy:
    """Chunks of 4 actions (or `chunk_size`), history and foresight 3 frames away (or `offset_frames`)."""
    network = tiny_model(seed, **model)
    robot = conveyor_embodiment()
    stats = Statistics(
        embodiment=robot.name,
        action_mode=action_mode,
        chunk_size=network.config.chunk_size,
        state=statistics([0.0, 0.3, 0.08, 0.2], [0.1, 0.1, 0.03, 0.4]),
        action=statistics([0.01, -0.02, 0.08], [0.05, 0.05, 0.03]),
    )
    return Policy(
        network, PolicySpec(network.config, (Robot(robot, stats),), SamplerConfig(3, n_action_steps))
    )


def frames(batch: int, step: int = 0) -> dict[str, Tensor]:
    """Random pictures `(B, 3, h, w)` of both cameras that depend on the robot's row and on the step."""
    cameras = {}
    for number, key in enumerate((HEAD, GRIPPER)):
        rows = [
            torch.randint(
                0,
                256,
                (3, SIZE, SIZE),
                generator=torch.Generator().manual_seed(1000 * number + 100 * row + step),
            )
            for row in range(batch)
        ]
        cameras[key] = torch.stack(rows).to(torch.uint8)
    return cameras


def states(batch: int, step: int = 0) -> Tensor:
    """States `(B, 4)` in physical units that depend on the row and on the step."""
    return torch.stack(
        [torch.tensor([0.01 * row, 0.3 + 0.005 * step, 0.1, float(row % 2)]) for row in range(batch)]
    )
