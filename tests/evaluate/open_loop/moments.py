"""Recorded moments of the conveyor robot, made up, and a robot whose dimensions have two units."""

from dataclasses import replace

import torch

from tests.infer.tiny_policy import GRIPPER, HEAD, SIZE, statistics, tiny_policy
from vla_mot.evaluate.open_loop.recorded import Recorded
from vla_mot.infer.policy import Policy
from vla_mot.robots.embodiment import Embodiment
from vla_mot.robots.normalization import Statistics
from vla_mot.robots.robot import Robot

CHUNK = 4
STD = (0.5, 0.5, 0.2)


def two_units() -> Robot:
    """A turn and a lift that the state knows, and a gripper that it does not."""
    spec = {
        "name": "lifter",
        "fps": 10,
        "state": [{"key": "observation.state", "names": ["turn", "lift"], "units": ["rad", "m"]}],
        "action": [
            {"key": "action", "names": ["turn", "lift", "gripper"], "units": ["rad", "m", "m"],
             "delta": [True, False, False]},
        ],
        "cameras": [HEAD, GRIPPER, None],
    }  # fmt: skip
    state, action = statistics([0.0, 0.0], [1.0, 1.0]), statistics([0.1, 0.2, 0.3], list(STD))
    return Robot(Embodiment.from_dict(spec), Statistics("lifter", "delta", CHUNK, state, action))


def driving(robot: Robot) -> Policy:
    """A policy with random weights that drives this robot."""
    policy = tiny_policy()
    return Policy(policy.model, replace(policy.spec, robots=(robot,)))


def recorded(count: int = 5, *, state_dim: int = 4, action_dim: int = 3, seed: int = 0) -> Recorded:
    """Moments 0, 4, 8, … of two episodes in turn; the last one ends after two steps and has no future."""
    generator = torch.Generator().manual_seed(seed)

    def pictures(*shape: int) -> torch.Tensor:
        return torch.randint(0, 256, (*shape, 3, SIZE, SIZE), generator=generator, dtype=torch.uint8)

    mask = torch.ones(count, CHUNK, dtype=torch.bool)
    mask[-1, 2:] = False
    return Recorded(
        images={key: pictures(count, 2) for key in (HEAD, GRIPPER)},
        future={key: pictures(count) for key in (HEAD, GRIPPER)},
        future_valid=torch.arange(count) < count - 1,
        state=torch.rand(count, state_dim, generator=generator),
        actions=torch.rand(count, CHUNK, action_dim, generator=generator),
        step_mask=mask,
        tasks=tuple(f"pick block {row}" for row in range(count)),
        episode=torch.arange(count) % 2,
        frame=CHUNK * torch.arange(count),
        index=100 + torch.arange(count),
    )
