"""A new model's understanding expert starts from a folder that transformers wrote, whole or not at all."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tests.hub.stock_folder import stock_folder
from tests.model.tiny import FAMILIES, backbone_options, tiny_model

from vla_mot.errors import CheckpointError
from vla_mot.hub.files import read_json
from vla_mot.hub.stock import load_backbone


@pytest.fixture(scope="module", params=FAMILIES)
def family(request) -> str:
    return request.param


@pytest.fixture(scope="module")
def stock(family, tmp_path_factory) -> Path:
    """A random model of the shape of `tiny_model`'s, saved by transformers itself. Read only."""
    return stock_folder(backbone_options(family), tmp_path_factory.mktemp("stock"))


@pytest.fixture
def copied(stock, tmp_path) -> Path:
    return Path(shutil.copytree(stock, tmp_path / "stock"))


def test_the_understanding_expert_is_replaced_and_nothing_else(family, stock):
    model, before = tiny_model(0, family), tiny_model(0, family).state_dict()
    load_backbone(model, stock)
    weights, changed = load_file(stock / "model.safetensors"), 0
    for name, tensor in weights.items():
        ours = model.understanding.stock_key(name)
        assert ours is not None and torch.equal(model.state_dict()[ours], tensor), name
        changed += 1
    same = [name for name, tensor in model.state_dict().items() if torch.equal(tensor, before[name])]
    assert changed > 20
    understanding = [name for name in before if "understanding" in name]
    assert changed == len(understanding)
    assert {name for name in before if name not in understanding} <= set(same)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda w: w.pop(next(k for k in w if k.endswith(("norm1.weight", "lambda_1")))),
            r"missing understanding.vis.*(norm1.weight|lambda_1)",
        ),
        (lambda w: w.update({"audio.weight": torch.zeros(1)}), r"unexpected audio.weight \(1,\)"),
    ],
)
def test_what_does_not_fit_is_named(family, copied, change, message):
    weights = load_file(copied / "model.safetensors")
    change(weights)
    save_file(weights, copied / "model.safetensors")
    with pytest.raises(CheckpointError, match=message):
        load_backbone(tiny_model(0, family), copied)


def test_another_familys_folder_is_refused_by_its_weights(family, stock):
    other = next(name for name in FAMILIES if name != family)
    with pytest.raises(CheckpointError, match="does not fit the model: missing "):
        load_backbone(tiny_model(0, other), stock)


def stated_otherwise(folder: Path, group: str, **values: Any) -> None:
    config = read_json(folder / "config.json")
    config[group] = config[group] | values
    (folder / "config.json").write_text(json.dumps(config))


@pytest.mark.parametrize(
    ("group", "values", "said"),
    [
        ("text_config", {"rope_theta": 123.0}, "backbone.rope_base=123.0 (here 100.0)"),
        ("text_config", {"rms_norm_eps": 1e-5}, "backbone.rms_norm_eps=1e-05 (here 1e-06)"),
        ("text_config", {"num_attention_heads": 8}, "backbone.num_heads=8 (here 4)"),
    ],
)
def test_another_way_to_compute_is_named(family, copied, group, values, said):
    stated_otherwise(copied, group, **values)
    model, before = tiny_model(0, family), tiny_model(0, family).state_dict()
    with pytest.raises(CheckpointError) as told:
        load_backbone(model, copied)
    assert said in str(told.value)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_what_each_family_has_of_its_own(family, copied):
    options = backbone_options(family)
    if family == "qwen3_vl":
        options |= {"vision_start_token_id": 9}
        stated_otherwise(copied, "text_config", rope_scaling={"mrope_section": [1, 1, 2]})
        said = (
            "backbone.mrope_sections=[1, 1, 2] (here [2, 1, 1])",
            "backbone.vision_start_token_id=257 (here 9)",
        )
    else:
        options |= {"scale_text": True}
        stated_otherwise(copied, "vision_config", num_attention_heads=2)
        said = ("backbone.scale_text=False (here True)", "backbone.vision.num_heads=2 (here 4)")
    with pytest.raises(CheckpointError) as told:
        load_backbone(tiny_model(0, family, backbone=options), copied)
    assert all(text in str(told.value) for text in said)


def test_a_folder_must_say_how_it_computes(family, copied):
    (copied / "config.json").unlink()
    with pytest.raises(CheckpointError, match=r"config.json is missing"):
        load_backbone(tiny_model(0, family), copied)
