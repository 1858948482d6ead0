import json

import pytest
import torch

from tests.composed import composed
from tests.three_datasets import EPISODES, RECORDINGS, SIZE
from vla_mot.data.source import Source
from vla_mot.envs.conveyor import ConveyorEnv
from vla_mot.errors import ConfigError
from vla_mot.evaluate.metaworld import graphics
from vla_mot.robots.catalog import find_embodiment
from vla_mot.robots.embodiment import Embodiment


@pytest.fixture(scope="module")
def embodiment() -> Embodiment:
    return Embodiment.from_dict(composed("record", "output=x")["embodiment"])


def test_the_dataset_fits_the_embodiment_and_names_both_objects(dataset, embodiment):
    source = Source.open(dataset, embodiment)
    assert source.num_episodes == 5
    per_episode = [source.task(int(start)) for start in source.bounds[:, 0]]
    assert per_episode[:4] == ["pick the red block", "pick the blue block"] * 2
    assert source.state.shape[1] == 4


def test_every_scene_is_asked_for_both_ways(dataset, embodiment):
    source = Source.open(dataset, embodiment)
    first = source.state[source.bounds[:, 0]]
    assert torch.allclose(first[0], first[1])
    assert not torch.allclose(first[1], first[2])


def test_the_same_seed_gives_the_same_dataset(vla_mot, dataset, tmp_path, embodiment):
    again = tmp_path / "again"
    said = vla_mot("data", "record", f"output={again}", "episodes=2", "seed=3")
    assert said.code == 0
    assert "kept 2 episodes" in said.out
    one, other = Source.open(dataset, embodiment), Source.open(again, embodiment)
    frames = other.num_frames
    assert torch.equal(one.action[:frames], other.action)
    assert torch.equal(one.decode(0, one.cameras[0]), other.decode(0, other.cameras[0]))


@pytest.mark.parametrize(
    ("fps", "stated"), [("20", "20 fps"), ("29.97", "29.97 fps"), ("10.4", "10.4 fps"), ("null", "no fps")]
)
def test_another_rate_than_the_simulators_is_refused(vla_mot, tmp_path, fps, stated):
    said = vla_mot("data", "record", f"output={tmp_path / 'out'}", "episodes=1", f"embodiment.fps={fps}")
    assert said.code != 0
    message = " ".join(said.err.split())
    assert f"states {stated}, but environment 'conveyor' steps at 10 Hz" in message
    assert "set embodiment.fps=10" in message
    assert not (tmp_path / "out").exists()


def test_a_rate_that_lerobot_cannot_write_is_refused(vla_mot, tmp_path, monkeypatch):
    monkeypatch.setitem(ConveyorEnv.metadata, "render_fps", 12.5)
    said = vla_mot("data", "record", f"output={tmp_path / 'out'}", "episodes=1", "embodiment.fps=12.5")
    assert said.code != 0
    assert "steps at 12.5 Hz; LeRobot records whole frames per second" in " ".join(said.err.split())


def test_static_scenes(vla_mot, tmp_path, embodiment):
    said = vla_mot("data", "record", f"output={tmp_path / 'still'}", "episodes=2", "static_fraction=1.0")
    assert said.code == 0
    source = Source.open(tmp_path / "still", embodiment)
    head = source.decode(
        0, source.cameras[0]
    ).float()  # two frames of a moving belt differ by 2 there, of this by 0.2
    assert (head[4] - head[2])[:, 40:].abs().mean() < 1, "the belt moves"


def opened(folder, name) -> Source:
    robot = find_embodiment(name)
    assert robot is not None
    return Source.open(folder / name, robot)


@pytest.mark.parametrize("name", RECORDINGS)
def test_each_recording_says_its_robot_and_is_read_as_it(three_datasets, name):
    info = json.loads((three_datasets / name / "meta" / "info.json").read_text())
    assert (info["robot_type"], info["total_episodes"], info["fps"]) == (name, EPISODES, 10)
    source = opened(three_datasets, name)
    assert {source.task(int(start)) for start in source.bounds[:, 0]} == {
        "pick the red block",
        "pick the blue block",
    }
    for camera in source.cameras:
        assert source.decode(0, camera).shape == (int(source.bounds[0, 1]), 3, SIZE, SIZE)


def test_the_robots_differ_in_widths_and_cameras(three_datasets):
    sources = {name: opened(three_datasets, name) for name in RECORDINGS}
    widths = {name: (source.state.shape[1], source.action.shape[1]) for name, source in sources.items()}
    assert widths == {"conveyor": (4, 3), "conveyor_fingers": (5, 4), "conveyor_video": (0, 0)}
    assert {name: len(source.cameras) for name, source in sources.items()} == {
        "conveyor": 2,
        "conveyor_fingers": 1,
        "conveyor_video": 1,
    }
    assert sources["conveyor"].has_actions and not sources["conveyor_video"].has_actions
    fingers = sources["conveyor_fingers"].action
    assert fingers[:, 2:].min() > 0.01 and fingers[:, 2:].max() < 0.06, "metres from the palm's middle"


def test_a_video_is_of_the_same_scenes_without_their_labels(vla_mot, tmp_path, dataset):
    """Also of the gripper itself, by a camera that the robot shares with it."""
    said = vla_mot("data", "record", "embodiment=conveyor_video", f"output={tmp_path / 'conveyor_video'}",
                   "episodes=1", "seed=3")  # fmt: skip
    assert said.code == 0
    message = "conveyor_video has no observation.images.gripper, observation.state, action: not recorded"
    assert message in " ".join(said.out.split())
    features = json.loads((tmp_path / "conveyor_video" / "meta" / "info.json").read_text())["features"]
    assert not {"observation.state", "action", "observation.images.gripper"} & features.keys()
    robot = find_embodiment("conveyor")
    assert robot is not None
    video, labelled = opened(tmp_path, "conveyor_video"), Source.open(dataset, robot)
    assert torch.equal(video.decode(0, video.cameras[0]), labelled.decode(0, labelled.cameras[0]))


@pytest.mark.parametrize(
    ("words", "messages"),
    [
        (
            ("embodiment=conveyor_fingers",),
            ("observation.state with 5 dimensions", "observation.images.overhead", "env.robot=planar"),
        ),
        (
            ("env.robot=fingers",),
            ("action with 3 dimensions", "gives observation.images.overhead (64, 64, 3)"),
        ),
        (("embodiment=conveyor_video", "env.robot=fingers"), ("expects observation.images.head;",)),
        (("embodiment.cameras=[observation.images.wrist]",), ("expects observation.images.wrist;",)),
        (
            ("embodiment.state=[{key: observation.effort, names: [x, y], units: [N, N]}]",),
            ("observation.effort with 2 dimensions",),
        ),
        (("env.robot=foot",), ("unknown robot 'foot'",)),
    ],
)
def test_what_the_robot_does_not_give_is_refused_before_anything_is_recorded(
    vla_mot, tmp_path, words, messages
):
    said = vla_mot("data", "record", f"output={tmp_path / 'out'}", *words)
    assert said.code == 2
    assert all(message in " ".join(said.err.split()) for message in messages), said.err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.sim
def test_meta_worlds_robot_and_disturbances_come_with_it(vla_mot, tmp_path):
    pytest.importorskip("metaworld", reason="vla-mot[metaworld] is not installed")
    try:
        graphics.choose()
    except ConfigError as error:
        pytest.skip(str(error))
    tasks = "env.tasks=[button-press-topdown-v3,handle-press-v3]"
    words = ("env=metaworld", tasks, "env.image_size=32", "env.max_steps=1", "seed=4")
    said = vla_mot("data", "record", f"output={tmp_path / 'metaworld'}", "episodes=2", *words)
    assert said.code == 0, said.err
    source = opened(tmp_path, "metaworld")
    assert source.cameras == (
        "observation.image",
        "observation.images.corner",
        "observation.images.gripperPOV",
    )
    assert [source.task(int(start)) for start in source.bounds[:, 0]] == [
        "Press a button from the top",
        "Press a handle down",
    ]
    assert source.state.shape[1] == source.action.shape[1] == 4 and source.action.abs().max() <= 1
    refused = vla_mot(
        "data", "record", f"output={tmp_path / 'none'}", "env=metaworld", "env.tasks=[draw-open-v3]"
    )
    assert refused.code == 2 and "Did you mean 'drawer-open-v3'?" in " ".join(refused.err.split())
