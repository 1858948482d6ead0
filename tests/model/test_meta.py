"""A model built without memory becomes the ordinary one when weights are assigned to it."""

from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf
from tests.model.stock import AS_STOCK
from tests.model.tiny import FAMILIES, tiny_batch, tiny_config, tiny_model, tiny_noise

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


def content(repository: Path, name: str) -> dict[str, Any]:
    found = OmegaConf.to_container(OmegaConf.load(repository / "conf" / f"{name}.yaml"))
    assert isinstance(found, dict)
    return found


COUNTS = {  # `FACTS.md` §1: understanding, generation, action, all
    ("a1_3b", "qwen3_vl_2b"): (2_127_532_032, 440_467_456, 440_467_456, 3_222_760_208),
    ("a1_2b", "internvl3_1b"): (938_119_296, 357_898_112, 357_898_112, 1_835_996_688),
}


@pytest.mark.parametrize(("preset", "backbone"), COUNTS)
def test_the_presets_have_as_many_weights_as_the_released_models(
    repository: Path, preset: str, backbone: str
) -> None:
    """At full size, without memory."""
    sizes = content(repository, f"model/{preset}")["model"]
    understanding = content(repository, f"backbone/{backbone}") | {"tokenizer": "byte"}
    foresight = content(repository, "foresight/cosmos")
    for options in (understanding, foresight):
        del options["weights"]
    del foresight["offset_frames"], foresight["offset_seconds"], foresight["history"]
    model = on_meta(ModelConfig.from_dict({**sizes, "backbone": understanding, "foresight": foresight}))
    assert all(x.is_meta for x in (*model.parameters(), *model.buffers()))
    biases = ".vision_tower.encoder.layer"  # of queries, keys and values: the released 2B dropped them
    counts = {"understanding": 0, "generation": 0, "action": 0}
    for name, weight in model.named_parameters():
        if biases in name and name.endswith(("q_proj.bias", "k_proj.bias", "v_proj.bias")):
            continue
        counts["all"] = counts.get("all", 0) + weight.numel()
        for expert in ("understanding", "generation", "action"):
            if f".experts.{expert}." in name or f".norms.{expert}." in name:
                counts[expert] += weight.numel()
        if name.startswith("understanding."):
            counts["understanding"] += weight.numel()
    assert tuple(counts.values()) == COUNTS[preset, backbone]


def test_assigned_weights_train() -> None:
    config, source = tiny_config(), tiny_model()
    model = on_meta(config)
    model.load_state_dict(source.state_dict(), assign=True)
    model.reset_buffers("cpu")
    batch = tiny_batch()
    losses = model.losses(batch, *tiny_noise(batch))
    (losses.action_sum.sum() + losses.foresight_sum.sum()).backward()
    assert all((p.grad is not None) == p.requires_grad for p in model.parameters())
