"""The other robots at the belt: what they are told and feel, and that they can do the task as well as the first."""

import numpy as np
import pytest

from vla_mot.envs.conveyor import ROBOTS, ChunkExpert, ConveyorEnv, demonstrate
from vla_mot.envs.conveyor.scene import APERTURE_MAX, BELT_Y, BLOCK_SIZE

pytestmark = pytest.mark.sim

AROUND = BELT_Y - 0.005  # m, fingertips beside a block


def env_of(robot, **options):
    return ConveyorEnv(robot=robot, **({"obs_type": "agent_pos"} | options))


@pytest.mark.parametrize("robot", ROBOTS.values(), ids=ROBOTS)
def test_spaces_are_as_wide_as_the_names_and_hold_whatever_happens(robot):
    env, random = env_of(robot.name, max_steps=10_000), np.random.default_rng(0)
    assert env.action_space.shape == (len(robot.action_names),)
    assert env.observation_space["agent_pos"].shape == (len(robot.state_names),)
    for seed in range(5):
        assert env.observation_space.contains(env.reset(seed=seed)[0])
        for _ in range(60):
            observation, *_ = env.step(random.uniform(env.action_space.low, env.action_space.high))
            assert env.observation_space.contains(observation)


def test_every_robot_has_cameras_of_its_own():
    seen = {
        name: tuple(env_of(name, obs_type="pixels_agent_pos").reset(seed=0)[0]["pixels"]) for name in ROBOTS
    }
    assert seen == {"planar": ("head", "gripper"), "fingers": ("overhead",), "hand": ("head",)}


@pytest.mark.parametrize("robot", ["fingers", "hand"])
@pytest.mark.parametrize("horizon", [1, 10])
def test_the_expert_succeeds_with_every_robot(robot, horizon):
    env, expert, successes = env_of(robot), ChunkExpert(horizon), 0
    for seed in range(60):
        env.reset(seed=10_000 + seed)
        expert.reset()
        ended = False
        while not ended:
            action = env.robot.command(expert.act(env.privileged_state(), env.target_index))
            *_, terminated, truncated, info = env.step(action)
            ended = terminated or truncated
        successes += info["is_success"]
    assert successes >= 57


def test_demonstrations_with_two_finger_drives_mostly_succeed():
    env = env_of("fingers", max_steps=90)
    last = []
    for seed in range(40):
        for step in demonstrate(env, seed):
            assert env.action_space.contains(step.executed) and step.action.shape == (4,)
        last.append(step.info["is_success"])
    assert sum(last) >= 36


def settle(env, action, steps=6):
    for _ in range(steps):
        state = env.step(np.array(action, np.float32))[0]["agent_pos"]
    return state


def test_the_state_is_in_the_units_and_order_of_the_actions():
    env = env_of("fingers")
    start = env.reset(seed=0)[0]["agent_pos"]
    goal = start[:4] + np.array([0.015, -0.012, -0.01, -0.03], np.float32)
    np.testing.assert_allclose(settle(env, goal)[:4], goal, atol=1e-4)


def test_one_finger_moves_and_the_other_stays():
    env = env_of("fingers")
    x, y, left, right, _ = env.reset(seed=0)[0]["agent_pos"]
    after = settle(env, [x, y, 0.02, right])
    np.testing.assert_allclose(after[:4], [x, y, 0.02, right], atol=1e-4)
    assert left == pytest.approx(APERTURE_MAX / 2, abs=1e-3)


def test_two_fingers_hold_a_block_off_the_palms_middle():
    """What a shared motor cannot: it would draw the block to the middle."""
    env = env_of("fingers", motion="static", max_steps=10_000)
    env.reset(seed=0)
    shift = 0.015
    x = env.privileged_state().block_xy[env.target_index, 0] - shift
    settle(env, [x, 0.25, 0.056, 0.056], 20)
    settle(env, [x, AROUND, 0.056, 0.056], 20)
    held = settle(env, [x, AROUND, BLOCK_SIZE / 2 - shift - 0.003, BLOCK_SIZE / 2 + shift - 0.003], 10)
    assert env.privileged_state().held == env.target_index and held[4] == 1.0
    assert held[3] - held[2] == pytest.approx(2 * shift, abs=0.006)


def test_an_action_of_another_robot_is_refused():
    env = env_of("fingers")
    env.reset(seed=0)
    with pytest.raises(ValueError, match=r"x, y, left, right; got an array of shape \(3,\)"):
        env.step(np.zeros(3, np.float32))


def test_a_hand_moves_exactly_as_the_gripper_and_looks_otherwise():
    gripper, hand = (
        list(demonstrate(env_of(name, obs_type="pixels_agent_pos"), 2)) for name in ("planar", "hand")
    )
    for one, other in zip(gripper, hand, strict=True):
        np.testing.assert_array_equal(one.observation["agent_pos"], other.observation["agent_pos"])
        np.testing.assert_array_equal(one.executed, other.executed)
        assert not np.array_equal(one.observation["pixels"]["head"], other.observation["pixels"]["head"])
