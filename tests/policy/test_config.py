import json

import pytest
import yaml
from lerobot.configs import PreTrainedConfig
from lerobot.policies.factory import get_policy_class, make_policy_config

from vla_mot.errors import ConfigError
from vla_mot.hub.files import read_json
from vla_mot.hub.native import read_spec
from vla_mot.policy import VlaMotConfig, VlaMotPolicy
from vla_mot.policy.card import trained_card
from vla_mot.policy.defaults import default_model


def test_a_native_config_is_a_lerobot_config(native):
    config = PreTrainedConfig.from_pretrained(native)
    spec = read_spec(native)
    assert isinstance(config, VlaMotConfig)
    assert config.type == "vla_mot"
    assert config.model_config() == spec.model
    assert config.embodiments == [spec.robot().embodiment.to_dict()]
    assert config.embodiment == "conveyor"
    assert (config.num_steps, config.n_action_steps, config.action_mode) == (3, 3, "delta")
    assert list(config.image_features) == ["observation.images.head", "observation.images.gripper"]
    assert config.robot_state_feature.shape == (4,)
    assert config.action_feature.shape == (3,)


def test_every_native_key_survives_lerobots_way_of_writing(native, tmp_path):
    config = PreTrainedConfig.from_pretrained(native)
    config.save_pretrained(tmp_path)
    written, original = read_json(tmp_path / "config.json"), read_json(native / "config.json")
    assert {key: written[key] for key in original} == original
    assert PreTrainedConfig.from_pretrained(tmp_path) == config


def test_lerobot_finds_the_policy_by_its_name():
    assert isinstance(make_policy_config("vla_mot"), VlaMotConfig)
    assert get_policy_class("vla_mot") is VlaMotPolicy


def test_training_asks_for_three_frames_and_a_chunk(native):
    config = PreTrainedConfig.from_pretrained(native)
    assert config.observation_delta_indices == [-3, 0, 3]
    assert config.action_delta_indices == [0, 1, 2, 3]
    assert config.reward_delta_indices is None


def test_the_command_line_changes_the_sampler(native):
    overrides = ["--num_steps=7", "--n_action_steps=2", "--device=cpu"]
    config = PreTrainedConfig.from_pretrained(native, cli_overrides=overrides)
    assert (config.num_steps, config.n_action_steps, config.device) == (7, 2, "cpu")


def test_options_from_scratch_replace_the_defaults():
    config = VlaMotConfig(model={"offset_frames": 6}, chunk_size=12, n_action_steps=10)
    assert config.observation_delta_indices == [-6, 0, 6]
    assert config.model_config().chunk_size == 12
    assert config.model_config().backbone == VlaMotConfig().model_config().backbone


@pytest.mark.parametrize(
    ("embodiment", "frames"), [("metaworld", 40), ("conveyor", 5), ("conveyor_by_another_name", 5)]
)
def test_m_in_seconds_counts_the_robots_own_frames(native, embodiment, frames):
    """By name or alias; one that a checkpoint does not know is looked up among those that come with vla_mot."""
    own = PreTrainedConfig.from_pretrained(native)
    described = own.embodiments[0] | {"aliases": ["conveyor_by_another_name"]}
    config = VlaMotConfig(
        model={"offset_seconds": 0.5}, embodiment=embodiment, embodiments=[described | {"fps": 10.0}]
    )
    assert config.observation_delta_indices == [-frames, 0, frames]


def test_m_in_seconds_of_a_robot_that_nobody_knows_yet_is_refused():
    with pytest.raises(ConfigError, match=r"offset_seconds=0\.3 cannot be counted .* say offset_frames"):
        _ = VlaMotConfig(model={"offset_seconds": 0.3}).observation_delta_indices


def test_the_learning_rate_knows_where_the_weights_come_from():
    assert VlaMotConfig().get_optimizer_preset().lr == 1e-3
    assert VlaMotConfig(pretrained_path="x").get_optimizer_preset().lr == 5e-5
    assert VlaMotConfig(optimizer_lr=2e-3).get_scheduler_preset().peak_lr == 2e-3


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"model": {"offset_frame": 6}}, "offset_frames"),
        ({"n_obs_steps": 2}, "keeps its own history"),
        ({"action_mode": "relative"}, "'abs' or 'delta'"),
        ({"chunk_size": 4}, "n_action_steps must lie in 1 … chunk_size = 4, got 50"),
        ({"model": {"chunk_size": 4}}, "predicts chunks of 4"),
        (
            {"license": "Apache 2.0"},
            r"--policy\.license: expected .* got 'apache 2\.0'\. Did you mean 'apache-2\.0'",
        ),
    ],
)
def test_what_does_not_fit_is_said(options, message):
    with pytest.raises(ConfigError, match=message):
        VlaMotConfig(**options)


def test_a_licence_matters_where_something_is_pushed():
    assert VlaMotConfig(license="Apache 2.0", push_to_hub=False).license == "Apache 2.0"
    assert VlaMotConfig(license="MIT").push_to_hub


@pytest.mark.parametrize(
    ("told", "listed"),
    [
        ("MIT", {"license": "mit"}),
        ("other", {"license": "other", "license_name": "not stated"}),
        (None, {"license": "other", "license_name": "not stated"}),
    ],
)
def test_the_card_lists_the_licence_as_the_hub_spells_it(native, told, listed):
    data = trained_card(read_spec(native), "org/policy", "org/data", told, None, None).data.to_dict()
    assert {key: data[key] for key in data if key.startswith("license")} == listed


def test_an_unknown_key_of_a_checkpoint_is_refused(copied):
    content = read_json(copied / "config.json")
    (copied / "config.json").write_text(json.dumps(content | {"colour": "red"}))
    with pytest.raises(Exception, match="colour"):
        PreTrainedConfig.from_pretrained(copied)


def test_the_default_is_the_tiny_preset_with_room(repository):
    def read(name: str) -> dict:
        return yaml.safe_load((repository / "conf" / f"{name}.yaml").read_text())

    model, foresight, preset = default_model(), read("foresight/dct"), read("model/tiny")["model"]
    backbone = read("backbone/qwen3_vl_tiny")
    assert backbone.pop("weights") is None  # how a run starts, not how the model is built
    assert model["backbone"] | {"text_length": 24} == backbone
    assert model["foresight"] == {key: foresight[key] for key in model["foresight"]}
    for key in ("generation", "action", "view_size", "foresight_stride"):
        assert model[key] == preset[key]
    assert VlaMotConfig().model_config().max_action_dim == 32
