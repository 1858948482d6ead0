"""Demonstrations: clean labels, disturbed execution, recoveries, and the same again for the same seed."""

import numpy as np
import pytest

from vla_mot.envs.conveyor import ConveyorEnv, DemonstrationNoise, demonstrate, plan_chunk

pytestmark = pytest.mark.sim


@pytest.fixture(scope="module")
def env():
    return ConveyorEnv(obs_type="agent_pos")


def test_without_noise_the_label_is_what_was_executed(env):
    steps = list(demonstrate(env, 0, DemonstrationNoise(tremor=0.0, push_rate=0.0)))
    assert all(np.array_equal(step.action, step.executed) for step in steps)
    assert steps[-1].info["verdict"] == "success"
    assert [step.info["verdict"] for step in steps[:-1]] == ["running"] * (len(steps) - 1)


def test_noise_disturbs_execution_and_leaves_labels_clean(env):
    labels = []
    for step in demonstrate(env, 1, options={"target": "blue"}):
        state, target = env.privileged_state(), env.target_index
        labels.append(step)
        assert step.task == "pick the blue block"
        assert env.action_space.contains(step.executed) and step.action.dtype == np.float32
        # The label belongs to the observation before the action: within one step's reach of it.
        assert np.all(np.abs(step.action[:2] - step.observation["agent_pos"][:2]) <= [0.0221, 0.0161])
        assert plan_chunk(state, target, state.belt_velocity, 3).shape == (3, 3)
    distance = [np.abs(step.action - step.executed)[:2].max() for step in labels]
    assert max(distance) > 0.005
    assert all(step.action[2] == step.executed[2] for step in labels)


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
