"""What a policy call is asked: a robot, its cameras' pictures, and the setting of the call.

The pictures come as a camera gives them, in bytes of another size than the model's, on the host; so a call does all
that a robot would wait for.
"""

import copy
from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from common import TEXT
from torch import Tensor

from vla_mot.hub.spec import PolicySpec, SamplerConfig
from vla_mot.infer.policy import Policy
from vla_mot.model.model import VlaMotModel
from vla_mot.robots.actions import ABSOLUTE
from vla_mot.robots.embodiment import CAMERA_PREFIX, Embodiment
from vla_mot.robots.normalization import FeatureStatistics, Statistics
from vla_mot.robots.robot import Robot

CAMERA = (480, 640)  # pixels, rows and columns
_JOINTS = 14  # of two arms with grippers, where the model has room for them


@dataclass(frozen=True)
class Setting:
    """Of one call. views: cameras. steps: of Euler's solver. chunk: actions, 0: the model's number. batch: robots."""

    views: int = 3
    steps: int = 10
    chunk: int = 0
    batch: int = 1


@dataclass(frozen=True)
class Request:
    """The arguments of `Policy.predict`."""

    images: Mapping[str, Tensor]
    state: Tensor
    instructions: tuple[str, ...]
    noise: Tensor


def scene(model: VlaMotModel, setting: Setting) -> tuple[Policy, Request]:
    """A policy around these very weights, and what it is asked. Actions are normalized ones: mean 0, deviation 1."""
    config = replace(
        model.config,
        chunk_size=setting.chunk or model.config.chunk_size,
        num_views=max(setting.views, model.config.num_views),
    )
    twin = copy.copy(model)  # the same modules and weights, none of which depends on these numbers
    twin.config = config
    joints = min(_JOINTS, config.max_state_dim, config.max_action_dim)
    robot = _robot(setting.views, joints, config.chunk_size)
    policy = Policy(twin, PolicySpec(config, (robot,), SamplerConfig(setting.steps, 1)))
    return policy, _request(policy, setting)


def _robot(views: int, joints: int, chunk: int) -> Robot:
    field = {"names": [f"joint_{number}" for number in range(joints)], "units": ["rad"] * joints}
    body = Embodiment.from_dict(
        {
            "name": "measured",
            "fps": 30,
            "state": [{"key": "observation.state", **field}],
            "action": [{"key": "action", **field}],
            "cameras": [f"{CAMERA_PREFIX}{number}" for number in range(views)],
        }
    )
    zeros, ones = torch.zeros(joints), torch.ones(joints)
    plain = FeatureStatistics(mean=zeros, std=ones, min=-3 * ones, max=3 * ones, count=1)
    return Robot(body, Statistics(body.name, ABSOLUTE, chunk, plain, plain))


def _request(policy: Policy, setting: Setting) -> Request:
    generator = torch.Generator().manual_seed(0)
    shape = (setting.batch, 2, 3, *CAMERA)
    return Request(
        images={
            key: torch.randint(0, 256, shape, generator=generator, dtype=torch.uint8)
            for _, key in policy.robot.embodiment.present_cameras
        },
        state=torch.randn(setting.batch, policy.robot.embodiment.state_dim, generator=generator),
        instructions=(TEXT,) * setting.batch,
        noise=policy.noise(range(setting.batch), call=0),
    )
