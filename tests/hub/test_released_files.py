"""What the authors' files say survives every conversion; what they say of robots and modes is believed or refused."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file
from tests.hub.test_released import KINDS, architecture, numbers, opened, statistics

from vla_mot.errors import CheckpointError, ConfigError
from vla_mot.hub.checkpoint import Checkpoint, open_checkpoint
from vla_mot.hub.files import read_json
from vla_mot.hub.released import save_released
from vla_mot.hub.spec import SamplerConfig
from vla_mot.infer.policy import Policy

FRANKA = {"Franka": statistics()["Franka"]}


@pytest.fixture(params=KINDS)
def kind(request) -> str:
    return request.param


@pytest.fixture
def copy(goldens, kind, tmp_path) -> Path:
    """A checkpoint of one robot that is known."""
    folder = tmp_path / kind
    folder.mkdir()
    for name in ("config.json", "model.safetensors"):
        shutil.copyfile(goldens / kind / name, folder / name)
    (folder / "stats.json").write_text(json.dumps(FRANKA))
    return folder


def there_and_back(found: Checkpoint, folder: Path) -> Path:
    """Through our layout into theirs again."""
    Policy(found.load(), found.spec).save_pretrained(folder / "ours")
    again = open_checkpoint(folder / "ours")
    save_released(folder / "theirs", again.spec, again.load().state_dict())
    return folder / "theirs"


@pytest.mark.parametrize("mode", ["abs", "delta"])
def test_every_file_comes_back_to_the_byte(copy, kind, tmp_path, mode, caplog):
    training = {"seed": 1000, "dataset": {"action_mode": mode, "repo_id": "é"}}
    (copy / "train_config.json").write_text(json.dumps(training, indent=3, ensure_ascii=False))
    theirs = there_and_back(opened(copy, kind), tmp_path)
    for name in ("config.json", "stats.json", "train_config.json"):
        assert (theirs / name).read_bytes() == (copy / name).read_bytes(), name
    assert [str(robot) for robot in opened(theirs, kind).spec.robots] == [f"franka/{mode}"]
    assert "taken as" not in caplog.text


@pytest.mark.parametrize(
    "training", [None, {"seed": 3}, {"dataset": {"action_mode": "delta"}}, {"dataset": "a list of names"}]
)
def test_a_mode_that_was_stated_is_not_forgotten(copy, kind, tmp_path, training):
    if training is not None:
        (copy / "train_config.json").write_text(json.dumps(training))
    theirs = there_and_back(opened(copy, kind, action_mode="abs"), tmp_path)
    assert [str(robot) for robot in opened(theirs, kind).spec.robots] == ["franka/abs"]
    kept = (training or {}).get("seed")
    assert read_json(theirs / "train_config.json").get("seed") == kept


def test_a_checkpoint_that_was_converted_without_its_mode_says_it_on_the_way_back(copy, kind, tmp_path):
    found = opened(copy, kind, action_mode="abs")
    assert found.spec.released is not None
    spec = replace(found.spec, released=replace(found.spec.released, training=None))
    save_released(tmp_path / "theirs", spec, found.load().state_dict())
    assert opened(tmp_path / "theirs", kind).spec.robots[0].action_mode == "abs"


def test_an_assumed_mode_is_not_written_as_if_it_were_known(copy, kind, tmp_path):
    assert not (there_and_back(opened(copy, kind), tmp_path) / "train_config.json").exists()


def test_robots_of_two_modes_do_not_fit(copy, kind, tmp_path):
    found, other = opened(copy, kind), opened(copy, kind, action_mode="abs")
    both = replace(found.spec, robots=found.spec.robots + other.spec.robots)
    with pytest.raises(ConfigError, match="robots of one action mode"):
        save_released(tmp_path / "theirs", both, found.load().state_dict())


def test_what_the_spec_says_otherwise_is_written(copy, kind, tmp_path):
    found = opened(copy, kind)
    spec = replace(found.spec, sampler=SamplerConfig(3, 2), dtype="bfloat16")
    save_released(tmp_path / "theirs", spec, found.load(dtype=torch.bfloat16).state_dict())
    before, after = read_json(copy / "config.json"), read_json(tmp_path / "theirs" / "config.json")
    told = {"num_inference_steps": 3, "n_action_steps": 2, "dtype": "bfloat16"}
    assert after == before | told and before != after
    assert opened(tmp_path / "theirs", kind).spec.sampler == SamplerConfig(3, 2)


# ---- the action mode ----


def test_a_recorded_mode_is_found_in_lists(copy, kind):
    (copy / "train_config.json").write_text(json.dumps({"datasets": [{"id": 1}, {"action_mode": "abs"}]}))
    assert opened(copy, kind).spec.robots[0].action_mode == "abs"
    assert opened(copy, kind, action_mode="delta").spec.released.action_mode == "delta"


def test_a_recorded_mode_that_nobody_knows_is_refused(copy, kind):
    (copy / "train_config.json").write_text(json.dumps({"dataset": {"action_mode": "Delta"}}))
    said = r"train_config.json says action_mode 'Delta'; expected 'abs' or 'delta'. Did you mean 'delta'\?"
    with pytest.raises(CheckpointError, match=said):
        opened(copy, kind)
    assert opened(copy, kind, action_mode="abs").spec.robots[0].action_mode == "abs"


def test_a_stated_mode_that_nobody_knows_is_refused(copy, kind):
    with pytest.raises(ConfigError, match=r"unknown action mode 'Delta'. Did you mean 'delta'\?"):
        opened(copy, kind, action_mode="Delta")


def test_our_layout_states_its_mode(copy, kind, tmp_path):
    found = opened(copy, kind)
    Policy(found.load(), found.spec).save_pretrained(tmp_path / "ours")
    assert open_checkpoint(tmp_path / "ours", action_mode="delta").spec.robots[0].action_mode == "delta"
    with pytest.raises(ConfigError, match=r"none is in 'abs'. It knows franka/delta; leave out"):
        open_checkpoint(tmp_path / "ours", action_mode="abs")


# ---- robots ----


def wide_robot(folder: Path, name: str = "toaster", width: int = 2) -> Path:
    """A user's own embodiment file."""
    joints = [f"slot_{place}" for place in range(width)]
    field = {"names": joints, "units": ["1"] * width}
    told = {
        "name": name,
        "fps": 10,
        "state": [{"key": "observation.state", **field}],
        "action": [{"key": "action", **field}],
        "cameras": ["observation.images.head"],
    }
    path = folder / f"{name}.yaml"
    path.write_text(yaml.safe_dump(told))
    return path


def told_of(name: str, width: int) -> dict[str, Any]:
    return {name: {"observation.state": numbers(width), "action": numbers(width)}}


def test_a_users_own_robot_opens_and_stays(copy, kind, tmp_path, caplog):
    (copy / "stats.json").write_text(json.dumps(told_of("toaster", 2)))
    assert not opened(copy, kind).spec.robots
    assert "'toaster' are kept, but no embodiment of that name is known" in caplog.text
    options = {"embodiments": [wide_robot(tmp_path)], "architecture": architecture(kind)}
    policy = Policy.from_pretrained(copy, **options)
    assert str(policy.robot) == "toaster/delta"
    policy.save_pretrained(tmp_path / "ours")
    assert [str(robot) for robot in open_checkpoint(tmp_path / "ours").spec.robots] == ["toaster/delta"]
    with pytest.raises(ConfigError, match="describes its own robots; leave out embodiments"):
        open_checkpoint(tmp_path / "ours", embodiments=[tmp_path])


def test_a_robot_wider_than_the_model_is_named_and_hinders_no_other(copy, kind, tmp_path, caplog):
    (copy / "stats.json").write_text(json.dumps(told_of("centipede", 40) | FRANKA))
    found = opened(copy, kind, embodiments=[wide_robot(tmp_path, "centipede", 40)])
    assert [str(robot) for robot in found.spec.robots] == ["franka/delta"]
    said = "'centipede' are kept, but the model cannot drive it: the state of embodiment 'centipede' has 40 dimensions"
    assert said in caplog.text
    Policy(found.load(), found.spec).save_pretrained(tmp_path / "ours")


def test_two_names_of_one_robot_are_said_to_be_that(copy, kind, caplog):
    told = {"Franka": FRANKA["Franka"], "franka": FRANKA["Franka"]}
    (copy / "stats.json").write_text(json.dumps(told))
    assert [str(robot) for robot in opened(copy, kind).spec.robots] == ["franka/delta"]
    assert "statistics of 'franka' are kept, but 'Franka' means the same robot 'franka'" in caplog.text
    assert "no embodiment of that name" not in caplog.text


# ---- constants ----


@pytest.mark.parametrize(
    ("part", "change", "message"),
    [
        ("_enc_model.encoder.patcher.wavelets", lambda x: x * 3, r"wavelets is \[2.1213, 2.1213\], expected"),
        ("_dec_model.decoder.unpatcher._arange", lambda x: x.flip(0), r"_arange is \[1.0, 0.0\], expected"),
        ("_dec_model.decoder.unpatcher.wavelets", None, r"missing model.cosmos.*unpatcher.wavelets"),
    ],
)
def test_other_constants_are_refused(copy, kind, part, change, message):
    weights = load_file(copy / "model.safetensors")
    (name,) = [name for name in weights if name.endswith(part)]
    held = weights.pop(name)
    if change is not None:
        weights[name] = change(held).contiguous()
    save_file(weights, copy / "model.safetensors")
    with pytest.raises(CheckpointError, match=message):
        opened(copy, kind)


def test_other_picture_means_are_refused(goldens, tmp_path):
    for name in ("config.json", "model.safetensors"):
        shutil.copyfile(goldens / "a1_2b_tiny" / name, tmp_path / name)
    weights = load_file(tmp_path / "model.safetensors")
    save_file(weights | {"model.imagenet_std": torch.full((1, 3, 1, 1), 0.5)}, tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"model.imagenet_std is \[0.5, 0.5, 0.5\], expected"):
        opened(tmp_path, "a1_2b_tiny")
    save_file(weights, tmp_path / "model.safetensors")
    told = read_json(tmp_path / "config.json") | {"imagenet_mean": [0.5, 0.5, 0.5]}
    (tmp_path / "config.json").write_text(json.dumps(told))
    with pytest.raises(CheckpointError, match=r"config.json says imagenet_mean \[0.5, 0.5, 0.5\]"):
        opened(tmp_path, "a1_2b_tiny")
