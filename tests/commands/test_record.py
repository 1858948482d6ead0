import pytest
import torch

from tests.composed import composed
from vla_mot.data.source import Source
from vla_mot.envs.conveyor import ConveyorEnv
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
