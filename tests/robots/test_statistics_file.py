import json
from dataclasses import replace

import pytest
import torch

from vla_mot.errors import ConfigError
from vla_mot.robots.embodiment import Embodiment
from vla_mot.robots.normalization import FeatureStatistics, Statistics, summarize
from vla_mot.robots.statistics_file import load_statistics, native_content, released_statistics


def robot(**changes) -> Embodiment:
    def vector(key, width):
        return {"key": key, "names": [f"{i}" for i in range(width)], "units": ["m"] * width}

    spec = {
        "name": "toy",
        "aliases": ["Toy Robot"],
        "fps": 10,
        "state": [vector("states.joints", 3), vector("states.gripper", 1)],
        "action": [vector("action", 2)],
        "cameras": ["observation.images.head"],
    }
    return Embodiment.from_dict(spec | changes)


def statistics(name="toy", mode="delta", chunk_size=5, state=4, action=2) -> Statistics:
    generator = torch.Generator().manual_seed(0)
    features = [summarize([torch.randn(9, width, generator=generator)]) for width in (state, action)]
    return Statistics(name, mode, chunk_size, *features)


def numbers(width: int, start: float = 0.0) -> dict[str, list[float]]:
    row = [start + i for i in range(width)]
    return {"mean": row, "std": [1.0] * width, "min": [-9.0] * width, "max": [9.0] * width, "count": [7]}


def released(name="Toy Robot") -> dict:
    return {name: {"states.joints": numbers(3), "states.gripper": numbers(1, 7.0), "action": numbers(2)}}


@pytest.fixture
def write(tmp_path):
    def written(content):
        path = tmp_path / "stats.json"
        path.write_text(content if isinstance(content, str) else json.dumps(content))
        return path

    return written


def refuse(path, **stated) -> str:
    with pytest.raises(ConfigError) as caught:
        load_statistics(path, **stated)
    assert str(path) in str(caught.value)
    return str(caught.value)


def test_several_robots_and_modes_go_there_and_back(write):
    mine = [statistics(), statistics(mode="abs", chunk_size=7), statistics("human", state=0, action=0)]
    found = load_statistics(write(native_content(mine)))
    assert found.embodiments == ("toy", "human")
    for numbers_, mode, chunk_size in ((mine[0], "delta", 5), (mine[1], "abs", 7)):
        picked = found.pick(robot(), mode, chunk_size)
        assert torch.equal(picked.action.std, numbers_.action.std)
    watching = found.pick(robot(name="human", state=[], action=[]), "delta", 5)
    assert watching.state.mean.shape == (0,)


@pytest.mark.parametrize(
    ("wanted", "message"),
    [
        ((robot(), "abs", 5), "for action mode 'delta', but 'abs' is wanted"),
        ((robot(), "delta", 50), "for chunk size 5, but 50 is wanted"),
        ((robot(name="toi"), "delta", 5), "no statistics of embodiment 'toi'. Did you mean 'toy'?"),
        ((robot(action=[]), "delta", 5), "toy's action have 2 dimensions, the embodiment has 0"),
    ],
)
@pytest.mark.parametrize("layout", ["native", "released"])
def test_statistics_of_another_use_are_refused(write, wanted, message, layout):
    if layout == "native":
        found = load_statistics(write(native_content([statistics()])))
    else:
        found = load_statistics(write(released("toy")), "delta", 5)
        if not wanted[0].action:
            return  # features that an embodiment does not list are left alone
    with pytest.raises(ConfigError) as caught:
        found.pick(*wanted)
    assert message in " ".join(str(caught.value).split())
    assert "stats.json" in str(caught.value)


@pytest.mark.parametrize("name", ["toy", "Toy Robot", "toy robot", "toy  robot"])
def test_the_released_layout_is_read_by_name_and_alias(write, name):
    picked = load_statistics(write(released(name)), "abs", 50).pick(robot(), "abs", 50)
    assert picked.embodiment == "toy"
    assert picked.state.mean.tolist() == [0, 1, 2, 7]
    assert picked.action.count == 7


def test_the_released_layout_needs_its_mode_and_chunk_said(write):
    for stated in ({}, {"action_mode": "delta"}, {"chunk_size": 50}):
        message = refuse(write(released()), **stated)
        assert "does not say for which action mode and chunk size" in message


def test_a_feature_that_is_not_there_is_named(write):
    told = released()
    del told["Toy Robot"]["states.gripper"]
    with pytest.raises(ConfigError, match=r"stats.json: statistics of 'toy' lack states.gripper"):
        load_statistics(write(told), "delta", 5).pick(robot(), "delta", 5)


def test_what_is_no_statistics_file_says_what_it_is(write, tmp_path):
    write("{}")
    missing = refuse(tmp_path / "stat.json")
    assert "does not exist. Did you mean 'stats.json'?" in missing
    assert "is damaged" in refuse(write('{"toy": '))
    assert "holds a list, not an object" in refuse(write([]))
    assert "found nothing" in refuse(write({}))
    assert "found a, b" in refuse(write({"a": 1, "b": {}}))
    lerobots = refuse(write({"action": numbers(2), "observation.state": numbers(3)}))
    assert "a LeRobot dataset's own statistics" in lerobots


def test_a_value_of_the_wrong_kind_is_a_sentence(write):
    told = native_content([statistics()])
    told["toy"]["delta"]["action"]["mean"] = ["fast", 1.0]
    assert "value of the wrong kind" in refuse(write(told))
    told = native_content([statistics()])
    told["toy"]["delta"]["chunk_size"] = None
    assert "value of the wrong kind" in refuse(write(told))
    told = native_content([statistics()])
    told["tool"] = told.pop("toy")
    assert "for embodiment 'toy', but 'tool' is wanted" in refuse(write(told))


def test_quantiles_of_released_statistics_are_kept():
    told = released()["Toy Robot"]
    for feature in told.values():
        feature["q01"], feature["q99"] = feature["min"], feature["max"]
    found = released_statistics(robot(), told, "delta", 5)
    assert found.state.quantiles["q99"].tolist() == [9.0] * 4
    assert isinstance(found.action, FeatureStatistics)
    assert replace(found, computed_on=None).to_dict() == found.to_dict()
