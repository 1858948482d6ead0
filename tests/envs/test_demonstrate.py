"""Demonstrations: clean labels, disturbed execution, recoveries, and the same again for the same seed."""

import numpy as np
import pytest

from vla_mot.envs.conveyor import ConveyorEnv, DemonstrationNoise, demonstrate, plan_chunk
from vla_mot.envs.conveyor.scene import BLOCK_SIZE

pytestmark = pytest.mark.sim

QUIET = DemonstrationNoise(tremor=0.0, push_rate=0.0, approach_push_rate=0.0, wait_steps=(0, 0))


@pytest.fixture(scope="module")
def env():
    return ConveyorEnv(obs_type="agent_pos", max_steps=90)


def test_without_noise_the_label_is_what_was_executed(env):
    steps = list(demonstrate(env, 0, QUIET, dwell_steps=0))
    assert all(np.array_equal(step.action, step.executed) for step in steps)
    assert steps[-1].info["verdict"] == "success"
    assert [step.info["verdict"] for step in steps[:-1]] == ["running"] * (len(steps) - 1)


def test_after_success_the_gripper_dwells_open_over_the_tray(env):
    steps = list(demonstrate(env, 0, QUIET, dwell_steps=7))
    verdicts = [step.info["verdict"] for step in steps]
    assert verdicts == ["running"] * (len(steps) - 8) + ["success"] * 8
    opening = [step.action[2] > BLOCK_SIZE for step in steps[-8:]]
    assert all(opening), "the chunks that end here show the release"
    assert steps[-1].observation["agent_pos"][3] == 0.0


def test_noise_disturbs_execution_and_leaves_labels_clean(env):
    labels = []
    for step in demonstrate(env, 1, options={"target": "blue"}):
        labels.append(step)
        assert step.task == "pick the blue block"
        assert env.action_space.contains(step.executed) and step.action.dtype == np.float32
    distance = [np.abs(step.action - step.executed)[:2].max() for step in labels]
    assert max(distance) > 0.005


def test_a_label_is_the_clean_plan_for_the_observation_before_the_action(env):
    labels = iter(demonstrate(env, 3))
    env_again = ConveyorEnv(obs_type="agent_pos", max_steps=90)
    env_again.reset(seed=3)
    for step in labels:
        state = env_again.privileged_state()
        clean = plan_chunk(state, env_again.target_index, state.belt_velocity, 1)[0]
        np.testing.assert_array_equal(step.action, clean)
        env_again.step(step.executed)


def test_the_gripper_waits_first_so_that_its_height_does_not_tell_the_time(env):
    waits = []
    for seed in range(30):
        heights = [step.observation["agent_pos"][1] for step in demonstrate(env, seed)]
        waits.append(next(i for i, height in enumerate(heights) if height < heights[0] - 0.005))
    assert min(waits) <= 2 and max(waits) >= 7


def test_the_same_seed_gives_the_same_demonstration(env):
    first, again = ([(s.action, s.executed) for s in demonstrate(env, 2)] for _ in range(2))
    assert all(np.array_equal(a, b) for a, b in zip(first, again, strict=True))


def test_demonstrations_contain_recoveries_and_mostly_succeed(env):
    successes, retreats = 0, 0
    for seed in range(60):
        steps = list(demonstrate(env, seed))
        successes += steps[-1].info["is_success"]
        heights = np.array([step.observation["agent_pos"][1] for step in steps])
        empty = np.array([step.observation["agent_pos"][3] == 0.0 for step in steps])
        rising = np.array([step.action[1] for step in steps]) > heights + 0.01
        retreats += bool(np.any(rising & empty & (heights < 0.18)))
    assert successes >= 54
    assert retreats >= 5
