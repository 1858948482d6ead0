"""A model built without memory becomes the ordinary one when weights are assigned to it."""

from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf
from tests.model.stock import AS_STOCK
from tests.model.tiny import FAMILIES, tiny_batch, tiny_config, tiny_model, tiny_noise

from vla_mot.backbones import build_backbone
from vla_mot.model.config import ModelConfig
from vla_mot.model.model import VlaMotModel

CONFIGS = {family: tiny_config(family) for family in FAMILIES}
CONFIGS["qwen3_vl with DeepStack"] = tiny_config(backbone=AS_STOCK["qwen3_vl"])
CONFIGS["cosmos"] = tiny_config(
    foresight={"type": "cosmos", "image_size": [32, 32], "channels": 32, "channel_multipliers": [1, 1]}
)


def on_meta(config: ModelConfig) -> VlaMotModel:
    with torch.device("meta"):
        return VlaMotModel(config)


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_a_model_built_on_meta_equals_the_ordinary_one(config: ModelConfig) -> None:
    torch.manual_seed(0)
    ordinary, other = VlaMotModel(config), on_meta(config)
    assert all(tensor.is_meta for tensor in (*other.parameters(), *other.buffers()))
    weights = {name: tensor.clone() for name, tensor in ordinary.state_dict().items()}
    other.load_state_dict(weights, strict=True, assign=True)
    assert other.reset_buffers("cpu") is other
    assert not [name for name, x in (*other.named_parameters(), *other.named_buffers()) if x.is_meta]
    for (name, mine), (_, theirs) in zip(other.named_buffers(), ordinary.named_buffers(), strict=True):
        assert torch.equal(mine, theirs) and mine.dtype == theirs.dtype, name
    assert other.state_dict().keys() == ordinary.state_dict().keys()  # none of them became persistent
    batch, (noise, level) = tiny_batch(), tiny_noise(tiny_batch())
    for one, two in zip(
        ordinary.eval().sample(batch.observation, noise[:, 0], 2, 3),
        other.eval().sample(batch.observation, noise[:, 0], 2, 3),
        strict=True,
    ):
        assert torch.equal(one, two)
    first, second = (model.losses(batch, noise, level) for model in (ordinary, other))
    assert torch.equal(first.action_sum, second.action_sum)
    assert torch.equal(first.foresight_sum, second.foresight_sum)


def test_weights_that_are_frozen_stay_so() -> None:
    for config in CONFIGS.values():
        trained = [
            [name for name, weight in model.named_parameters() if weight.requires_grad]
            for model in (VlaMotModel(config), on_meta(config))
        ]
        assert trained[0] == trained[1]


def test_every_preset_is_built_on_meta(repository: Path) -> None:
    """At full size, without memory."""
    for file in sorted((repository / "conf" / "backbone").glob("*.yaml")):
        options = OmegaConf.to_container(OmegaConf.load(file))
        assert isinstance(options, dict)
        with torch.device("meta"):
            expert = build_backbone({**options, "tokenizer": "byte"})
            parts = [expert, *expert.make_layers(), expert.make_norm()]
        assert all(x.is_meta for part in parts for x in (*part.parameters(), *part.buffers())), file


def test_assigned_weights_train() -> None:
    config, source = tiny_config(), tiny_model()
    model = on_meta(config)
    model.load_state_dict(source.state_dict(), assign=True)
    model.reset_buffers("cpu")
    batch = tiny_batch()
    losses = model.losses(batch, *tiny_noise(batch))
    (losses.action_sum.sum() + losses.foresight_sum.sum()).backward()
    assert all((p.grad is not None) == p.requires_grad for p in model.parameters())
