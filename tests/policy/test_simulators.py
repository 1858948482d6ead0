"""The simulators that lerobot brings, as far as they go without their scenes: an observation of the environment's own
layout through LeRobot's processors into a policy of that robot, and an action of the environment's shape back.

The environments of RoboTwin and RoboCasa are lerobot's own classes, which build their simulator at the first reset.
LIBERO's cannot even be imported without it, so its layout is written out here, from lerobot 0.6.1.
"""

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gymnasium import spaces
from lerobot.configs import PreTrainedConfig
from lerobot.envs import configs
from lerobot.envs.robocasa import RoboCasaEnv, convert_action
from lerobot.envs.robotwin import RoboTwinEnv
from lerobot.envs.utils import preprocess_observation
from lerobot.policies.factory import make_policy, make_pre_post_processors

import vla_mot.policy  # noqa: F401  LeRobot learns the type
from tests.infer.tiny_policy import known_robot
from tests.model.tiny import tiny_model
from vla_mot.hub.native import save_policy
from vla_mot.hub.spec import PolicySpec, SamplerConfig
from vla_mot.robots.catalog import find_embodiment

WIDTH = 16
PAGE = Path(__file__).parents[2] / "docs" / "simulators.md"


def box(*shape: int) -> spaces.Box:
    return spaces.Box(-1, 1, shape, np.float64)


def libero() -> tuple[spaces.Space, spaces.Space]:
    picture = spaces.Box(0, 255, (64, 64, 3), np.uint8)
    robot = {
        "eef": spaces.Dict({"pos": box(3), "quat": box(4), "mat": box(3, 3)}),
        "gripper": spaces.Dict({"qpos": box(2), "qvel": box(2)}),
        "joints": spaces.Dict({"pos": box(7), "vel": box(7)}),
    }
    seen = {"pixels": spaces.Dict({"image": picture, "image2": picture}), "robot_state": spaces.Dict(robot)}
    return spaces.Dict(seen), spaces.Box(-1, 1, (7,), np.float32)


def robotwin() -> tuple[spaces.Space, spaces.Space]:
    env = RoboTwinEnv("beat_block_hammer")
    return env.observation_space, env.action_space


def robocasa() -> tuple[spaces.Space, spaces.Space]:
    env = RoboCasaEnv("CloseFridge", episode_length=10)
    return env.observation_space, env.action_space


def page_rename_map() -> dict[str, str]:
    (told,) = re.findall(r"--rename_map='(\{.*?\})'", PAGE.read_text())
    return json.loads(told)


SIMULATORS = [
    ("panda", configs.LiberoEnv, libero, dict),
    ("aloha", configs.RoboTwinEnvConfig, robotwin, page_rename_map),
    ("panda_omron", configs.RoboCasaEnv, robocasa, dict),
]


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    def save(name: str) -> Path:
        folder = tmp_path_factory.mktemp("policies") / name
        model = tiny_model(max_state_dim=WIDTH, max_action_dim=WIDTH)
        spec = PolicySpec(model.config, (known_robot(name, 4, "abs"),), SamplerConfig(2, 2))
        save_policy(folder, spec, model.state_dict())
        return folder

    return save


def seen_by(space: spaces.Space) -> dict[str, Any]:
    """One observation in a batch of one, as a vector environment gives it."""

    def batched(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: batched(inner) for key, inner in value.items()}
        return np.asarray(value)[None]

    space.seed(0)
    return batched(space.sample())


@pytest.mark.parametrize(("name", "kind", "layout", "renaming"), SIMULATORS, ids=[s[0] for s in SIMULATORS])
def test_what_an_environment_shows_becomes_an_action_that_it_takes(saved, name, kind, layout, renaming):
    """As `lerobot-eval` wires it."""
    folder, environment, rename_map = saved(name), kind(), renaming()
    shown, taken = layout()
    config = PreTrainedConfig.from_pretrained(folder)
    config.device, config.pretrained_path = "cpu", folder
    policy = make_policy(config, env_cfg=environment, rename_map=rename_map)
    before, after = make_pre_post_processors(
        config,
        pretrained_path=str(folder),
        preprocessor_overrides={
            "device_processor": {"device": "cpu"},
            "rename_observations_processor": {"rename_map": rename_map},
        },
    )
    of_environment, to_environment = environment.get_env_processors()
    seen = of_environment(preprocess_observation(seen_by(shown)) | {"task": ["close the fridge"]})
    action = after(policy.select_action(before(seen)))
    action = to_environment({"action": action})["action"]
    assert action.shape == (1, *taken.shape) and bool(torch.isfinite(action).all())


def test_the_order_of_robocasas_action_is_that_of_its_robot():
    """Names of `panda_omron` beside where lerobot cuts the flat vector."""
    names = np.array(find_embodiment("panda_omron").action[0].names)
    cut = {key.removeprefix("action."): list(part) for key, part in convert_action(names).items()}
    assert cut == {
        "base_motion": [f"base_motion_{i}" for i in range(4)],
        "control_mode": ["control_mode"],
        "end_effector_position": ["x", "y", "z"],
        "end_effector_rotation": ["rx", "ry", "rz"],
        "gripper_close": ["gripper_close"],
    }


def test_robocasas_state_is_that_of_its_robot():
    """The order in which lerobot joins the parts, marked by numbers."""
    parts = {
        "state.base_position": ["base_x", "base_y", "base_z"],
        "state.base_rotation": ["base_qx", "base_qy", "base_qz", "base_qw"],
        "state.end_effector_position_relative": ["x", "y", "z"],
        "state.end_effector_rotation_relative": ["qx", "qy", "qz", "qw"],
        "state.gripper_qpos": ["finger_0", "finger_1"],
    }
    names = list(find_embodiment("panda_omron").state[0].names)
    marked = {key: np.array([names.index(name) for name in part]) for key, part in parts.items()}
    joined = RoboCasaEnv("CloseFridge", episode_length=10)._format_raw_obs(marked)["agent_pos"]
    assert joined.tolist() == list(range(len(names)))
