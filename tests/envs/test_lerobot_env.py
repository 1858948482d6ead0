"""Stock LeRobot builds, resets and steps the conveyor through `packages/lerobot_env_conveyor`."""

import inspect
from pathlib import Path

import numpy as np
import pytest
import torch
from tests.composed import composed

from vla_mot.envs.conveyor import ConveyorEnv

pytestmark = pytest.mark.sim

PACKAGE = Path(__file__).parents[2] / "packages" / "lerobot_env_conveyor"


@pytest.fixture(scope="module")
def make_config():
    pytest.importorskip("lerobot")
    from lerobot.envs.factory import make_env_config

    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(PACKAGE))
        import lerobot_env_conveyor  # noqa: F401

        yield lambda **options: make_env_config("conveyor", **options)


@pytest.fixture(scope="module")
def config(make_config):
    return make_config(image_size=32, max_steps=8, target="blue")


def test_the_three_homes_of_the_defaults_agree(make_config):
    """What is driven by `vla-mot`, by `lerobot-eval` and by `gymnasium.make` is the same robot."""
    demo = composed("demo")
    defaults = {name: p.default for name, p in inspect.signature(ConveyorEnv).parameters.items()}
    configured = {key: value for key, value in demo["env"].items() if key != "name"}
    lerobots = make_config()
    assert configured == {key: defaults[key] for key in configured}
    assert {"image_size", "motion", "max_steps"} <= configured.keys()
    offered = {key: value for key, value in lerobots.gym_kwargs.items() if key != "render_mode"}
    assert offered == {key: defaults[key] for key in offered} and configured.keys() <= offered.keys()
    assert lerobots.fps == ConveyorEnv.metadata["render_fps"] == demo["embodiment"]["fps"]


def test_the_features_are_named_as_a_policy_expects(config):
    from lerobot.envs.utils import env_to_policy_features

    features = env_to_policy_features(config)
    assert {key: feature.shape for key, feature in features.items()} == {
        "action": (3,),
        "observation.state": (4,),
        "observation.images.head": (3, 32, 32),
        "observation.images.gripper": (3, 32, 32),
    }


def test_another_robot_has_other_features(make_config):
    from lerobot.envs.factory import make_env
    from lerobot.envs.utils import env_to_policy_features, preprocess_observation

    config = make_config(robot="fingers", image_size=32)
    assert {key: feature.shape for key, feature in env_to_policy_features(config).items()} == {
        "action": (4,),
        "observation.state": (5,),
        "observation.images.overhead": (3, 32, 32),
    }
    env = make_env(config, n_envs=1)["conveyor"][0]
    raw, _ = env.reset(seed=[1])
    assert preprocess_observation(raw)["observation.images.overhead"].shape == (1, 3, 32, 32)
    env.step(raw["agent_pos"][:, :4])
    env.close()
    with pytest.raises(ValueError, match="expected one of planar, fingers, hand"):
        make_config(robot="finger")


def test_make_env_steps_until_the_time_limit(config):
    from lerobot.envs.factory import make_env
    from lerobot.envs.utils import preprocess_observation

    env = make_env(config, n_envs=2)["conveyor"][0]
    raw, _ = env.reset(seed=[1, 2])
    observation = preprocess_observation(raw)
    assert observation["observation.images.head"].shape == (2, 3, 32, 32)
    assert observation["observation.images.gripper"].dtype == torch.float32
    assert observation["observation.state"].shape == (2, 4)
    assert list(env.call("task_description")) == ["pick the blue block"] * 2
    assert env.call("_max_episode_steps")[0] == 8 and env.unwrapped.metadata["render_fps"] == config.fps
    for _ in range(8):
        *_, terminated, truncated, info = env.step(raw["agent_pos"][:, :3])
    assert truncated.all() and not terminated.any()
    assert not np.any(info["final_info"]["is_success"])
    assert np.stack(env.call("render")).shape == (2, 384, 384, 3)
    env.close()
