"""The contract of the gymnasium environment: spaces, seeds, instructions, pictures and bad arguments."""

import warnings

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env

from vla_mot.envs import CONVEYOR_ID
from vla_mot.envs.conveyor import ROBOTS, ChunkExpert, ConveyorEnv

pytestmark = pytest.mark.sim


def play(env, seed, options=None, steps=25):
    """Observations of a fixed action sequence."""
    rng = np.random.default_rng(7)
    observations = [env.reset(seed=seed, options=options)[0]]
    low, high = env.action_space.low, env.action_space.high
    for _ in range(steps):
        observation, _, terminated, truncated, _ = env.step(rng.uniform(low, high))
        observations.append(observation)
        if terminated or truncated:
            break
    return observations


def flat(observations):
    return [
        np.concatenate([o["agent_pos"], *(o["pixels"][view].ravel() for view in ("head", "gripper"))])
        for o in observations
    ]


@pytest.mark.parametrize("motion", ["dynamic", "static"])
@pytest.mark.parametrize("obs_type", ["pixels_agent_pos", "agent_pos"])
@pytest.mark.parametrize("robot", ROBOTS)
def test_passes_gymnasiums_checker(motion, obs_type, robot):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        # Its one piece of advice that is not followed: actions are physical, a policy normalizes them itself.
        warnings.filterwarnings("ignore", message=".*recommend using a symmetric and normalized space")
        options = {"motion": motion, "obs_type": obs_type, "robot": robot}
        env = gym.make(CONVEYOR_ID, render_mode="rgb_array", **options)
        check_env(env.unwrapped)


def test_a_seed_decides_everything():
    first, again = (flat(play(ConveyorEnv(), seed=5)) for _ in range(2))
    other = flat(play(ConveyorEnv(), seed=6))
    assert len(first) > 10
    assert all(np.array_equal(a, b) for a, b in zip(first, again, strict=True))
    assert not np.array_equal(first[0], other[0])


def test_a_reused_environment_replays_like_a_new_one():
    env = ConveyorEnv()
    play(env, seed=1)
    assert all(
        np.array_equal(a, b)
        for a, b in zip(flat(play(env, seed=5)), flat(play(ConveyorEnv(), seed=5)), strict=True)
    )


def test_either_instruction_meets_the_same_scene():
    env = ConveyorEnv()
    red, red_task = flat([env.reset(seed=3, options={"target": "red"})[0]]), env.task
    blue, blue_task = flat([env.reset(seed=3, options={"target": "blue"})[0]]), env.task
    assert np.array_equal(red[0], blue[0])
    assert (red_task, blue_task) == ("pick the red block", "pick the blue block")
    assert env.task_description == blue_task and env.other_instruction == red_task


def test_the_seed_draws_both_colours_unless_one_is_fixed():
    free, fixed = ConveyorEnv(obs_type="agent_pos"), ConveyorEnv(obs_type="agent_pos", target="blue")
    drawn = set()
    for seed in range(20):
        free.reset(seed=seed)
        fixed.reset(seed=seed)
        drawn.add(free.target)
        assert fixed.target == "blue"
    assert drawn == {"red", "blue"}


@pytest.mark.parametrize("size", [32, 64, 224])
def test_pictures_have_the_size_that_was_asked_for(size):
    env = ConveyorEnv(image_size=size, render_mode="rgb_array")
    pixels = env.reset(seed=0)[0]["pixels"]
    assert {view: picture.shape for view, picture in pixels.items()} == {
        "head": (size, size, 3),
        "gripper": (size, size, 3),
    }
    assert env.render().shape == (384, 384, 3)
    assert ConveyorEnv().render() is None


def test_a_third_of_a_pixel_shows_in_the_head_picture():
    """At 64 px a pixel is 9.4 mm; the belt below moves 3 mm from one picture to the next."""
    env = ConveyorEnv()
    before = env.reset(seed=0, options={"belt_velocity": 0.03})[0]
    stay = before["agent_pos"][:3]
    after = env.step(stay)[0]
    assert np.array_equal(before["agent_pos"], after["agent_pos"])
    assert not np.array_equal(before["pixels"]["head"], after["pixels"]["head"])


def test_the_state_is_in_the_units_and_order_of_the_actions():
    env = ConveyorEnv(obs_type="agent_pos")
    start = env.reset(seed=0)[0]["agent_pos"]
    goal = start[:3] + np.array([0.015, -0.012, -0.01], np.float32)
    for _ in range(3):
        state = env.step(goal)[0]["agent_pos"]
    np.testing.assert_allclose(state[:3], goal, atol=1e-3)
    assert state[3] == 0.0


@pytest.mark.parametrize(
    "wrong",
    [
        {"robot": "foot"},
        {"motion": "fast"},
        {"target": "green"},
        {"obs_type": "state"},
        {"render_mode": "human"},
    ],
)
def test_an_unknown_option_names_the_known_ones(wrong):
    with pytest.raises(ValueError, match="expected one of"):
        ConveyorEnv(**wrong)


def test_an_unknown_target_on_reset_is_refused():
    with pytest.raises(ValueError, match="unknown target 'green'"):
        ConveyorEnv(obs_type="agent_pos").reset(seed=0, options={"target": "green"})


def verdict_of(env, target_index=None, seed=0, **options):
    env.reset(seed=seed, options=options)
    expert, wanted = ChunkExpert(), env.target_index if target_index is None else target_index
    while True:
        action = expert.act(env.privileged_state(), wanted)
        _, reward, terminated, truncated, info = env.step(action)
        if terminated or truncated:
            return info["verdict"], info["is_success"], reward, terminated


def test_verdict_success():
    assert verdict_of(ConveyorEnv(obs_type="agent_pos")) == ("success", True, 1.0, True)


def test_verdict_wrong_object():
    env = ConveyorEnv(obs_type="agent_pos", target="red")
    assert verdict_of(env, target_index=1) == ("wrong_object", False, 0.0, True)


def test_verdict_time_out():
    env = ConveyorEnv(obs_type="agent_pos", max_steps=12)
    assert verdict_of(env) == ("time_out", False, 0.0, False)


def test_verdict_failure_when_the_block_leaves_the_belt():
    env = ConveyorEnv(obs_type="agent_pos", max_steps=200)
    start = env.reset(seed=0)[0]["agent_pos"][:3]
    ended = False
    while not ended:
        _, _, ended, truncated, info = env.step(start)
        assert not truncated
    assert info["verdict"] == "failure"


def test_verdict_failure_when_the_block_is_dropped_outside_the_tray():
    env = ConveyorEnv(obs_type="agent_pos")
    env.reset(seed=0)
    expert = ChunkExpert()
    for _ in range(60):
        state = env.privileged_state()
        action = expert.act(state, env.target_index)
        if state.held is not None and state.block_xy[state.held, 1] > 0.20:
            action = np.array([*state.gripper[:2], 0.112])
        info = env.step(action)[-1]
        if info["verdict"] != "running":
            break
    assert info["verdict"] == "failure"
