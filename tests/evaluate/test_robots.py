"""A policy that knows several robots drives each in its own environment, and no robot in another's."""

import gymnasium as gym
import pytest

import vla_mot.envs
from tests.infer.tiny_policy import SIZE, known_robot
from tests.model.tiny import tiny_model
from vla_mot.errors import ConfigError
from vla_mot.evaluate.closed_loop import run_episodes
from vla_mot.evaluate.controllers import PolicyController
from vla_mot.hub.spec import PolicySpec, SamplerConfig
from vla_mot.infer.policy import Policy

pytestmark = pytest.mark.sim

ROBOTS = ("conveyor", "conveyor_fingers", "conveyor_video")


@pytest.fixture(scope="module")
def several() -> Policy:
    model = tiny_model(chunk_size=12, offset_frames=6)
    robots = tuple(known_robot(name, 12) for name in ROBOTS)
    return Policy(model, PolicySpec(model.config, robots, SamplerConfig(3, 10)))


def conveyor(**options) -> gym.Env:
    return gym.make(vla_mot.envs.CONVEYOR_ID, image_size=SIZE, max_steps=12, **options)


@pytest.mark.parametrize(("name", "body"), [("conveyor", "planar"), ("conveyor_fingers", "fingers")])
def test_each_robot_is_driven_and_filmed_in_its_own_environment(several, tmp_path, name, body):
    controller = PolicyController(several.for_robot(name))
    results = run_episodes(
        lambda: conveyor(robot=body), controller, [1, 2], video_seeds=[1], video_folder=tmp_path
    )
    assert [result.steps for result in results] == [12, 12]
    assert (tmp_path / "1.mp4").stat().st_size > 1000
    foreseen = set(controller.foreseen(0))
    assert foreseen == set(conveyor(robot=body).observation_space["pixels"])


def test_what_is_no_robot_of_the_environment_is_refused(several):
    wrong = r"'conveyor' has actions of 3 dimensions, the environment of shape \(4,\): it is another robot's"
    with pytest.raises(ConfigError, match=wrong):
        run_episodes(lambda: conveyor(robot="fingers"), PolicyController(several.for_robot("conveyor")), [1])
    with pytest.raises(ConfigError, match="'conveyor_fingers' has actions of 4 dimensions"):
        run_episodes(conveyor, PolicyController(several.for_robot("conveyor_fingers")), [1])
    with pytest.raises(ConfigError, match="'conveyor_video' has no actions"):
        run_episodes(
            lambda: conveyor(robot="hand"), PolicyController(several.for_robot("conveyor_video")), [1]
        )


def test_a_state_of_another_width_is_refused_before_anything_is_driven(several):
    one_number_more = gym.wrappers.TransformObservation(
        conveyor(),
        lambda seen: seen,
        gym.spaces.Dict({"agent_pos": gym.spaces.Box(-1, 1, (5,)), "pixels": gym.spaces.Dict()}),
    )
    with pytest.raises(ConfigError, match="has a state of 4 dimensions"):
        PolicyController(several.for_robot("conveyor")).begin([one_number_more], [1])
