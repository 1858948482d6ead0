"""Motion matters, provably: what a single observation hides, what is out of reach, and the hard ceilings.

All of it in the demo's own environment, at the demo's own horizon and foresight: the numbers come from conf/.
"""

import numpy as np
import pytest
from tests.composed import composed

from vla_mot.envs.conveyor import ChunkExpert, ConveyorEnv, sample_scene
from vla_mot.envs.conveyor.scene import BELT_Y, BLOCK_SIZE

pytestmark = pytest.mark.sim

DEMO = composed("demo")
HISTORY = DEMO["foresight"]["offset_frames"]  # frames between the two pictures that the demo's policy sees
HORIZON = DEMO["sampler"]["n_action_steps"]
CHUNK = DEMO["model"]["chunk_size"]
EPISODES = 200


def demo_env(**options):
    """The environment that the demo drives."""
    known = {key: value for key, value in DEMO["env"].items() if key != "name"}
    return ConveyorEnv(**(known | options))


def success_rate(expert, swap=False, episodes=EPISODES, **env_options):
    env = demo_env(obs_type="agent_pos", **env_options)
    successes = 0
    for seed in range(episodes):
        env.reset(seed=10_000 + seed)
        expert.reset()
        target = 1 - env.target_index if swap else env.target_index
        ended = False
        while not ended:
            *_, terminated, truncated, info = env.step(expert.act(env.privileged_state(), target))
            ended = terminated or truncated
        successes += info["is_success"]
    return successes / episodes


def test_the_expert_that_knows_the_speed_succeeds():
    assert success_rate(ChunkExpert(HORIZON)) >= 0.95


def test_the_expert_that_believes_the_belt_stands_still_fails():
    assert success_rate(ChunkExpert(HORIZON, velocity=0.0)) <= 0.50


def test_the_expert_with_the_other_instruction_fails():
    assert success_rate(ChunkExpert(HORIZON), swap=True) <= 0.05


def test_believing_in_no_motion_is_right_where_nothing_moves():
    assert success_rate(ChunkExpert(HORIZON, velocity=0.0), motion="static", episodes=50) >= 0.95


def test_the_ceilings_hold_when_the_whole_chunk_is_executed_too():
    assert success_rate(ChunkExpert(CHUNK), episodes=60) >= 0.95
    assert success_rate(ChunkExpert(CHUNK, velocity=0.0), episodes=60) <= 0.50


def test_a_centimetre_of_error_is_forgiven():
    assert success_rate(ChunkExpert(HORIZON, position_noise=0.01), episodes=100) >= 0.90


def test_velocity_is_in_no_single_observation():
    env = demo_env()
    first = [env.reset(seed=4, options={"belt_velocity": v})[0] for v in (-0.08, 0.0, 0.05, 0.08)]
    for observation in first[1:]:
        np.testing.assert_array_equal(observation["agent_pos"], first[0]["agent_pos"])
        for view in ("head", "gripper"):
            np.testing.assert_array_equal(observation["pixels"][view], first[0]["pixels"][view])


def test_two_pictures_tell_the_velocities_apart():
    env, pictures = demo_env(), []
    for velocity in (-0.05, 0.05):
        observation = env.reset(seed=4, options={"belt_velocity": velocity})[0]
        for _ in range(HISTORY):
            observation = env.step(observation["agent_pos"][:3])[0]
        pictures.append(observation["pixels"]["head"])
    assert not np.array_equal(*pictures)


def test_static_scenes_are_the_dynamic_ones_at_rest():
    moving, still = (sample_scene(np.random.default_rng(8), motion) for motion in ("dynamic", "static"))
    assert still.belt_velocity == 0.0 and abs(moving.belt_velocity) >= 0.045
    assert still.block_x == moving.block_x and still.gripper_x == moving.gripper_x


def test_velocity_is_independent_of_where_things_start():
    scenes = [sample_scene(np.random.default_rng(seed)) for seed in range(2000)]
    velocity = np.array([scene.belt_velocity for scene in scenes])
    starts = np.array([[*scene.block_x, scene.gripper_x, scene.gripper_y] for scene in scenes])
    for column in starts.T:
        assert abs(np.corrcoef(velocity, column)[0, 1]) < 0.08
        assert abs(np.corrcoef(abs(velocity), abs(column))[0, 1]) < 0.08
    assert 0.45 < (velocity > 0).mean() < 0.55


def test_nothing_graspable_is_reachable_before_the_first_history_frame():
    """Even a gripper that dives at full speed from the first step on is still clear of every block."""
    env = demo_env(obs_type="agent_pos")
    for seed in range(30):
        env.reset(seed=seed)
        for _ in range(HISTORY):
            x = env.privileged_state().block_xy[env.target_index, 0]
            state = env.step(np.array([x, 0.0, 0.03]))[0]["agent_pos"]
        assert state[1] > BELT_Y + BLOCK_SIZE / 2
        assert state[3] == 0.0
