from collections.abc import Callable

import gymnasium as gym
import pytest

import vla_mot.envs
from tests.infer.tiny_policy import SIZE, tiny_policy
from vla_mot.envs.conveyor import ChunkExpert
from vla_mot.evaluate.controllers import Act, FunctionController
from vla_mot.infer.policy import Policy


@pytest.fixture(scope="session")
def policy() -> Policy:
    """Random weights; predicts every tenth step. Nothing may change it."""
    return tiny_policy(chunk_size=12, n_action_steps=10, offset_frames=6)


@pytest.fixture
def make_env() -> Callable[[], gym.Env]:
    """The conveyor with 32-pixel cameras."""
    return lambda: gym.make(vla_mot.envs.CONVEYOR_ID, image_size=SIZE)


@pytest.fixture
def expert() -> FunctionController:
    """Believes that the belt moves at 4 cm/s: succeeds sometimes, and episodes end at different times."""

    def begin(env: gym.Env, seed: int) -> Act:
        plan, robot = ChunkExpert(horizon=10, velocity=0.04), env.unwrapped
        return lambda seen: plan.act(robot.privileged_state(), robot.target_index)

    return FunctionController(begin)
