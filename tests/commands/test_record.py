import pytest
import torch

from vla_mot.data.source import Source
from vla_mot.robots.embodiment import Embodiment

from .test_conf import composed


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


def test_static_scenes(vla_mot, tmp_path, embodiment):
    said = vla_mot("data", "record", f"output={tmp_path / 'still'}", "episodes=2", "static_fraction=1.0")
    assert said.code == 0
    source = Source.open(tmp_path / "still", embodiment)
    head = source.decode(0, source.cameras[0]).float()
    assert (head[4] - head[2])[:, 40:].abs().mean() < 3, "the belt moves"
