"""What is missing from a checkpoint in the authors' layout is named, wherever its shapes are read."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tests.hub.test_released import KINDS, opened

from vla_mot.errors import CheckpointError
from vla_mot.hub.files import read_json

PARTS = {
    "a1_3b_tiny": ("model.qwen3_vl_with_expert.", "und_expert.model.visual.blocks.{}.norm1.weight", ""),
    "a1_2b_tiny": (
        "model.internvl_with_expert.",
        "und_expert.model.vision_tower.encoder.layer.{}.lambda_1",
        "model.",
    ),
}


@pytest.fixture(params=KINDS)
def kind(request) -> str:
    return request.param


@pytest.fixture
def copy(goldens, kind, tmp_path) -> Path:
    for name in ("config.json", "model.safetensors"):
        shutil.copyfile(goldens / kind / name, tmp_path / name)
    return tmp_path


def without(folder: Path, lost: Callable[[str], bool]) -> int:
    weights = load_file(folder / "model.safetensors")
    kept = {name: tensor for name, tensor in weights.items() if not lost(name)}
    save_file(kept, folder / "model.safetensors")
    return len(weights) - len(kept)


@pytest.mark.parametrize("layer", [0, 1, 2])
@pytest.mark.parametrize("part", ["und_expert.model.language_model.", "gen_expert.", "act_expert."])
def test_a_lost_norm_of_a_layer_is_named(copy, kind, layer, part):
    stack, _, inner = PARTS[kind]
    part = part if "und" in part else part + inner
    assert without(copy, lambda name: name == f"{stack}{part}layers.{layer}.input_layernorm.weight") == 1
    expert = {"u": "understanding", "g": "generation", "a": "action"}[part[0]]
    with pytest.raises(CheckpointError) as told:
        opened(copy, kind).load()
    assert f"missing stack.layers.{layer}.experts.{expert}.input_layernorm.weight" in str(told.value)
    assert "unexpected" not in str(told.value)


@pytest.mark.parametrize("layer", [0, 1])
def test_a_lost_part_of_the_vision_tower_is_named(copy, kind, layer):
    stack, tower, _ = PARTS[kind]
    assert without(copy, lambda name: name == (stack + tower).format(layer)) == 1
    with pytest.raises(CheckpointError) as told:
        opened(copy, kind).load()
    assert f"missing understanding.{tower.split('model.')[1].format(layer)}" in str(told.value)
    assert "unexpected" not in str(told.value)


def test_a_lost_part_of_the_autoencoder_is_named(copy, kind):
    assert without(copy, lambda name: name.endswith("encoder.down.1.block.0.conv1.weight")) == 1
    with pytest.raises(CheckpointError, match=r"lacks model.cosmos.*encoder.down.1.block.0.conv1.weight"):
        opened(copy, kind).load()


@pytest.mark.parametrize("experts", [("und_expert", "gen_expert", "act_expert"), ("act_expert",)])
def test_lost_layers_are_found_by_the_depth_that_is_told(copy, kind, experts):
    lost = without(
        copy,
        lambda name: any(expert in name for expert in experts)
        and ".layers.2." in name
        and "visual" not in name,
    )
    assert lost
    said = rf"holds 2 layers of .*{experts[0]}, but config.json says \w+_variant='\w+_3l'"
    with pytest.raises(CheckpointError, match=said):
        opened(copy, kind)


def test_a_made_up_layer_number_builds_no_model(copy, kind):
    weights = load_file(copy / "model.safetensors")
    name = f"{PARTS[kind][0]}und_expert.model.language_model.layers.99999999999.x"
    save_file(weights | {name: torch.zeros(1)}, copy / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"layers.99999999999.*but holds \d+ tensors"):
        opened(copy, kind)


def test_no_layers_at_all(copy, kind):
    without(copy, lambda name: ".language_model.layers." in name)
    with pytest.raises(CheckpointError, match=r"lacks|holds no"):
        opened(copy, kind)


def test_another_depth_may_be_told_without_a_number(copy, kind):
    told = read_json(copy / "config.json")
    told |= {key: "custom" for key in told if key.endswith("_variant")}
    (copy / "config.json").write_text(json.dumps(told))
    assert opened(copy, kind).spec.model.backbone["num_layers"] == 3
