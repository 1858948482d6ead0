import json
from dataclasses import replace

import pytest
from tests.model.tiny import tiny_config

from vla_mot.errors import ConfigError
from vla_mot.flow.matching import NoiseLevelConfig
from vla_mot.model.config import ModelConfig
from vla_mot.model.model import VlaMotModel


def test_a_configuration_survives_json() -> None:
    config = tiny_config(
        mask_padding=False, min_period=0.1, view_size=(32, 48), noise_level=NoiseLevelConfig(2.0, 0.01, 0.9)
    )
    assert ModelConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config


def test_what_is_left_out_takes_its_default() -> None:
    spec = tiny_config().to_dict()
    del spec["num_views"], spec["noise_level"]
    assert ModelConfig.from_dict(spec) == replace(tiny_config(), num_views=3)


@pytest.mark.parametrize("key", ["backbone", "foresight", "generation", "action"])
def test_a_missing_part_is_named(key: str) -> None:
    spec = tiny_config().to_dict()
    del spec[key]
    with pytest.raises(ConfigError, match=rf"model\.{key} .* must be given"):
        ModelConfig.from_dict(spec)


@pytest.mark.parametrize("part", ["generation", "action"])
@pytest.mark.parametrize("key", ["hidden_size", "intermediate_size"])
def test_a_missing_width_is_named(part: str, key: str) -> None:
    spec = tiny_config().to_dict()
    del spec[part][key]
    with pytest.raises(ConfigError, match=rf"model\.{part}\.{key} \(a whole number\) must be given"):
        ModelConfig.from_dict(spec)


def test_misspelt_options_suggest_the_nearest() -> None:
    spec = tiny_config().to_dict()
    with pytest.raises(ConfigError, match=r"unknown key 'model\.chunk_siz'.*'model\.chunk_size'"):
        ModelConfig.from_dict({**spec, "chunk_siz": 4})
    with pytest.raises(
        ConfigError, match=r"unknown key 'model\.action\.hidden'.*'model\.action\.hidden_size'"
    ):
        ModelConfig.from_dict({**spec, "action": {**spec["action"], "hidden": 4}})
    with pytest.raises(ConfigError, match=r"unknown key 'model\.noise_level\.alfa'.*alpha'"):
        ModelConfig.from_dict({**spec, "noise_level": {"alfa": 4}})


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("chunk_size", "4", r"model\.chunk_size: expected a whole number, got '4'"),
        ("mask_padding", "yes", r"model\.mask_padding: expected true or false, got 'yes'"),
        ("view_size", [32], r"model\.view_size: expected a list of 2 values"),
        ("generation", 24, r"model\.generation: expected a group of keys"),
        ("positions", "relased", r"model\.positions: 'relased'.*'released'"),
        ("action_loss", "all", r"model\.action_loss: 'all'.*padded, real"),
    ],
)
def test_values_of_a_wrong_kind_are_named(key: str, value: object, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        ModelConfig.from_dict({**tiny_config().to_dict(), key: value})


def test_a_loss_over_padding_that_the_input_hides_is_refused() -> None:
    with pytest.raises(
        ConfigError, match=r"action_loss=padded asks for the noise .* set model.mask_padding=false"
    ):
        tiny_config(action_loss="padded", mask_padding=True)
    assert tiny_config(action_loss="padded", mask_padding=False)


@pytest.mark.parametrize("key", ["num_views", "offset_frames", "foresight_stride", "chunk_size"])
def test_counts_below_one_are_refused(key: str) -> None:
    with pytest.raises(ConfigError, match=rf"model\.{key} must be at least 1, got 0"):
        tiny_config(**{key: 0})


def test_an_odd_action_width_and_a_stride_that_does_not_divide_are_refused() -> None:
    with pytest.raises(ConfigError, match="must be even, got 15"):
        tiny_config(action=replace(tiny_config().action, hidden_size=15))
    with pytest.raises(ConfigError, match=r"foresight_stride 3 must divide the latents' \(4, 4\)"):
        VlaMotModel(tiny_config(foresight_stride=3))
