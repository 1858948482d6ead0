"""A policy of LeRobot's own in our closed loop: the actions that LeRobot would take, robot by robot."""

import numpy as np
import pytest
import torch

from vla_mot.errors import ConfigError
from vla_mot.evaluate.closed_loop import run_episodes
from vla_mot.evaluate.lerobot_policy import LeRobotController

pytestmark = pytest.mark.sim
CAMERAS = ("head", "gripper")


def make_env():
    from vla_mot.envs.conveyor import ConveyorEnv

    return ConveyorEnv(image_size=64, max_steps=5)


@pytest.fixture(scope="module")
def act(tmp_path_factory):
    """A small ACT for the conveyor with statistics that matter, as `lerobot-train` leaves one."""
    from lerobot.configs import FeatureType, PolicyFeature
    from lerobot.policies.act.configuration_act import ACTConfig
    from lerobot.policies.act.modeling_act import ACTPolicy
    from lerobot.policies.factory import make_pre_post_processors

    torch.manual_seed(0)
    pictures = {
        f"observation.images.{name}": PolicyFeature(FeatureType.VISUAL, (3, 64, 64)) for name in CAMERAS
    }
    config = ACTConfig(
        input_features={**pictures, "observation.state": PolicyFeature(FeatureType.STATE, (4,))},
        output_features={"action": PolicyFeature(FeatureType.ACTION, (3,))},
        chunk_size=4, n_action_steps=2, dim_model=32, n_heads=2, dim_feedforward=32, n_encoder_layers=1,
        pretrained_backbone_weights=None, device="cpu",
    )  # fmt: skip
    numbers = {
        "observation.state": {"mean": torch.full((4,), 0.1), "std": torch.full((4,), 0.5)},
        "action": {"mean": torch.full((3,), 0.05), "std": torch.full((3,), 0.02)},
    }
    numbers |= {
        key: {"mean": torch.full((3, 1, 1), 0.5), "std": torch.full((3, 1, 1), 0.2)} for key in pictures
    }
    folder = tmp_path_factory.mktemp("act")
    ACTPolicy(config).save_pretrained(folder)
    for processor in make_pre_post_processors(config, dataset_stats=numbers):
        processor.save_pretrained(folder)
    return folder


def by_lerobot(folder, env, steps: int) -> list[np.ndarray]:
    """The actions of one robot as `lerobot-eval` computes them."""
    from lerobot.envs.utils import preprocess_observation
    from lerobot.policies.act.modeling_act import ACTPolicy
    from lerobot.policies.factory import make_pre_post_processors

    policy = ACTPolicy.from_pretrained(folder)
    before, after = make_pre_post_processors(policy.config, str(folder))
    seen, actions = env.reset(seed=3)[0], []
    for _ in range(steps):
        batch = preprocess_observation({**seen, "pixels": {k: v[None] for k, v in seen["pixels"].items()}})
        action = after(policy.select_action(before({**batch, "task": [env.task]})))[0].numpy()
        actions.append(action)
        seen = env.step(action)[0]
    return actions


def test_it_acts_as_under_lerobot_for_every_robot(act):
    controller, envs, seeds = LeRobotController(act), [make_env() for _ in range(2)], [9, 3]
    seen = [env.reset(seed=seed)[0] for env, seed in zip(envs, seeds, strict=True)]
    assert controller.begin(envs, seeds) == [env.task for env in envs]
    expected = by_lerobot(act, make_env(), 5)
    for step in range(5):
        actions = controller.act(seen)
        np.testing.assert_allclose(actions[-1], expected[step], atol=1e-5)
        seen = [env.step(action)[0] for env, action in zip(envs, actions, strict=True)]
        if step == 2:  # in the middle of a chunk
            controller.keep([1])
            envs, seen = envs[1:], seen[1:]
    assert np.abs(expected[0] - expected[2]).max() > 1e-6 and controller.foreseen(0) == {}


def test_a_policy_that_keeps_a_history_is_refused(act, tmp_path):
    from lerobot.policies.diffusion.configuration_diffusion import DiffusionConfig
    from lerobot.policies.tdmpc.configuration_tdmpc import TDMPCConfig

    for config, lacking in (
        (DiffusionConfig(), "'diffusion' with n_obs_steps=2 and no chunk_size"),
        (TDMPCConfig(), "'tdmpc' with n_obs_steps=1 and no chunk_size"),
    ):
        config.save_pretrained(tmp_path)
        with pytest.raises(ConfigError, match=lacking):
            LeRobotController(tmp_path)


def test_it_runs_whole_episodes_and_executes_as_many_steps_as_asked(act):
    found = run_episodes(make_env, LeRobotController(act, n_action_steps=4), [0, 1, 2], parallel=2)
    assert [episode.verdict for episode in found] == ["time_out"] * 3
    with pytest.raises(ConfigError, match="1 … 4"):
        LeRobotController(act, n_action_steps=5)
