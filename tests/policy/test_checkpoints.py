"""One folder for both: what LeRobot saves, `vla_mot.Policy` opens, and nothing is loaded by halves."""

import shutil
from dataclasses import replace

import pytest
import torch
from lerobot.configs import PreTrainedConfig
from lerobot.configs.types import FeatureType, PolicyFeature
from safetensors.torch import load_file, save_file

from tests.infer.tiny_policy import known_robot, tiny_policy
from vla_mot.errors import CheckpointError, ConfigError
from vla_mot.hub.native import read_spec
from vla_mot.infer.policy import Policy
from vla_mot.policy import VlaMotConfig, VlaMotPolicy


def test_a_round_trip_changes_no_file_that_matters(native, tmp_path):
    policy = VlaMotPolicy.from_pretrained(native)
    policy.save_pretrained(tmp_path / "again")
    for name in ("model.safetensors", "stats.json", "policy_preprocessor.json", "policy_postprocessor.json"):
        assert (tmp_path / "again" / name).read_bytes() == (native / name).read_bytes()
    assert read_spec(tmp_path / "again").config_dict() == read_spec(native).config_dict()
    assert VlaMotPolicy.from_pretrained(tmp_path / "again").config == policy.config


def test_vla_mot_opens_what_lerobot_saved(native, tmp_path):
    VlaMotPolicy.from_pretrained(native).save_pretrained(tmp_path)
    ours, theirs = Policy.from_pretrained(tmp_path), Policy.from_pretrained(native)
    for name, weight in ours.model.state_dict().items():
        assert torch.equal(weight, theirs.model.state_dict()[name])


def test_one_of_several_robots_is_saved_alone(tmp_path):
    """As the page on LeRobot says, for its asynchronous server, to which a client cannot name a robot."""
    base = tiny_policy(max_state_dim=8, max_action_dim=8)
    robots = (base.robot, known_robot("franka", base.spec.model.chunk_size))
    Policy(base.model, replace(base.spec, robots=robots)).save_pretrained(tmp_path / "both")
    policy = Policy.from_pretrained(tmp_path / "both", embodiment="franka")
    alone = replace(policy.spec, robots=(policy.robot,))
    Policy(policy.model, alone).save_pretrained(tmp_path / "one")
    opened = VlaMotPolicy.from_pretrained(tmp_path / "one")
    assert [str(robot) for robot in opened.spec.robots] == ["franka/delta"]
    assert "images.rgb.hand" in opened.config.input_features


def test_one_of_several_robots_is_driven_by_name(tmp_path):
    """`lerobot-rollout` opens a policy without `make_policy`, which fills in what a folder leaves open."""
    base = tiny_policy(max_state_dim=8, max_action_dim=8)
    robots = (base.robot, known_robot("franka", base.spec.model.chunk_size))
    Policy(base.model, replace(base.spec, robots=robots)).save_pretrained(tmp_path)
    config = PreTrainedConfig.from_pretrained(tmp_path, cli_overrides=["--embodiment=franka"])
    opened = VlaMotPolicy.from_pretrained(tmp_path, config=config)
    assert "images.rgb.hand" in opened.config.input_features
    assert opened.config.action_feature.shape == (robots[1].embodiment.action_dim,)


def test_a_cache_is_where_it_was_said_to_be(native, tmp_path):
    commit = "89abcdef01" * 4
    home = tmp_path / "models--somebody--policy"
    (home / "refs").mkdir(parents=True)
    (home / "refs" / "main").write_text(commit)
    shutil.copytree(native, home / "snapshots" / commit)
    policy = VlaMotPolicy.from_pretrained("somebody/policy", cache_dir=tmp_path, revision=commit)
    assert policy.spec.config_dict() == read_spec(native).config_dict()
    with pytest.raises(CheckpointError, match="somebody/policy"):
        VlaMotPolicy.from_pretrained("somebody/policy", revision=commit)


@pytest.mark.parametrize(
    "options", [{"force_download": True}, {"resume_download": False}, {"proxies": {"https": "http://proxy"}}]
)
def test_what_cannot_be_followed_is_refused(native, options):
    with pytest.raises(ConfigError, match="are not followed"):
        VlaMotPolicy.from_pretrained(native, **options)
    assert VlaMotPolicy.from_pretrained(native, force_download=False, resume_download=True)


def test_a_misspelt_option_is_no_option(native):
    with pytest.raises(TypeError, match="cache_dri"):
        VlaMotPolicy.from_pretrained(native, cache_dri="somewhere")


def test_a_gathered_state_dict_is_written(native, tmp_path):
    policy = VlaMotPolicy.from_pretrained(native)
    gathered = {
        name: weight + 1 if weight.is_floating_point() else weight
        for name, weight in policy.state_dict().items()
    }
    policy.save_pretrained(tmp_path, state_dict=gathered)
    weights, before = load_file(tmp_path / "model.safetensors"), load_file(native / "model.safetensors")
    assert weights.keys() == before.keys()
    name = "action.out_proj.weight"
    assert torch.equal(weights[name], before[name] + 1)


def test_a_policy_is_opened_for_evaluation(native):
    policy = VlaMotPolicy.from_pretrained(native)
    assert not any(module.training for module in policy.modules())


@pytest.mark.parametrize("change", ["missing", "unexpected", "shape", "truncated"])
def test_weights_that_do_not_fit_are_named(copied, change):
    path = copied / "model.safetensors"
    weights = load_file(path)
    name = "action.out_proj.weight"
    if change == "missing":
        del weights[name]
    elif change == "unexpected":
        weights[name := "action.extra"] = torch.zeros(1)
    elif change == "shape":
        weights[name] = weights[name][:1].clone()
    save_file(weights, path)
    if change == "truncated":
        path.write_bytes(path.read_bytes()[:-100])
        name = "truncated"
    with pytest.raises(CheckpointError, match=name):
        VlaMotPolicy.from_pretrained(copied)


@pytest.mark.parametrize("name", ["config.json", "stats.json", "model.safetensors"])
def test_a_missing_file_is_named(copied, name):
    (copied / name).unlink()
    with pytest.raises(CheckpointError, match=name):
        VlaMotPolicy.from_pretrained(copied)


def test_a_name_that_is_neither_a_folder_nor_on_the_hub(tmp_path):
    with pytest.raises(CheckpointError, match="nobody/nothing is not complete in the cache"):
        VlaMotPolicy.from_pretrained("nobody/nothing")
    with pytest.raises(CheckpointError, match="neither"):
        VlaMotPolicy.from_pretrained(tmp_path / "nothing")


def test_lax_loading_is_refused(native):
    with pytest.raises(ConfigError, match="completely or not at all"):
        VlaMotPolicy.from_pretrained(native, strict=False)


def test_what_belongs_to_the_weights_cannot_be_overridden(native):
    config = PreTrainedConfig.from_pretrained(native)
    config.embodiments = [config.embodiments[0] | {"fps": 20.0}]
    config.model = config.model | {"offset_frames": 5}
    with pytest.raises(ConfigError, match="differ in model, embodiments"):
        VlaMotPolicy.from_pretrained(native, config=config)


@pytest.mark.parametrize(("key", "value"), [("embodiment", "aloha"), ("action_mode", "abs")])
def test_a_robot_that_the_checkpoint_does_not_know_is_refused(native, key, value):
    config = PreTrainedConfig.from_pretrained(native)
    setattr(config, key, value)
    with pytest.raises(ConfigError, match="It knows conveyor/delta"):
        VlaMotPolicy.from_pretrained(native, config=config)


def test_an_environment_with_other_actions_is_refused(native):
    config = PreTrainedConfig.from_pretrained(native)
    config.output_features = {"action": PolicyFeature(FeatureType.ACTION, (7,))}  # as `make_policy` does
    with pytest.raises(ConfigError, match="action has 7 dimensions"):
        VlaMotPolicy.from_pretrained(native, config=config)


def test_a_dtype_from_the_command_line_is_used_and_kept(native, tmp_path):
    config = PreTrainedConfig.from_pretrained(native, cli_overrides=["--dtype=bfloat16"])
    policy = VlaMotPolicy.from_pretrained(native, config=config)
    assert policy.model.action.out_proj.weight.dtype == torch.bfloat16
    policy.save_pretrained(tmp_path)
    weights = VlaMotPolicy.from_pretrained(tmp_path).state_dict()
    assert read_spec(tmp_path).dtype == "bfloat16"
    for name, weight in policy.state_dict().items():
        assert weight.dtype == weights[name].dtype and torch.equal(weight, weights[name])


def test_a_dtype_that_says_nothing_is_refused(native):
    config = PreTrainedConfig.from_pretrained(native, cli_overrides=["--dtype=mixed"])
    with pytest.raises(ConfigError, match="the checkpoint's weights are float32"):
        VlaMotPolicy.from_pretrained(native, config=config)


def test_a_policy_from_nothing_asks_for_a_dataset(native):
    features = PreTrainedConfig.from_pretrained(native)
    config = VlaMotConfig(input_features=features.input_features, output_features=features.output_features)
    with pytest.raises(ConfigError, match="needs a dataset"):
        VlaMotPolicy(config)
    with pytest.raises(ConfigError, match="needs a camera"):
        VlaMotPolicy(VlaMotConfig())
