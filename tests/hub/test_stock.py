"""A new model's understanding expert starts from a folder that transformers wrote, whole or not at all."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tests.model.tiny import tiny_model
from transformers import Qwen3VLConfig, Qwen3VLForConditionalGeneration

from vla_mot.errors import CheckpointError
from vla_mot.hub.stock import load_backbone


@pytest.fixture(scope="module")
def stock(tmp_path_factory) -> Path:
    """A random Qwen3-VL of the shape of `tiny_model`'s, saved by transformers itself."""
    config = tiny_model(0).config.backbone
    vision = config["vision"]
    torch.manual_seed(3)
    text = {
        "vocab_size": config["vocab_size"],
        "hidden_size": config["hidden_size"],
        "intermediate_size": config["intermediate_size"],
        "num_hidden_layers": config["num_layers"],
        "num_attention_heads": config["num_heads"],
        "num_key_value_heads": config["num_kv_heads"],
        "head_dim": config["head_dim"],
    }
    tower = {
        "depth": vision["depth"],
        "hidden_size": vision["hidden_size"],
        "intermediate_size": vision["intermediate_size"],
        "num_heads": vision["num_heads"],
        "patch_size": vision["patch_size"],
        "spatial_merge_size": vision.get("merge_size", 2),
        "temporal_patch_size": vision.get("temporal_patch_size", 2),
        "out_hidden_size": config["hidden_size"],
        "num_position_embeddings": vision["num_position_embeddings"],
        "deepstack_visual_indexes": list(vision.get("deepstack_layers", [])),
    }
    model = Qwen3VLForConditionalGeneration(
        Qwen3VLConfig(text_config=text, vision_config=tower, tie_word_embeddings=True)
    )
    folder = tmp_path_factory.mktemp("stock")
    model.save_pretrained(folder)
    return folder


def test_the_understanding_expert_is_replaced_and_nothing_else(stock):
    model, before = tiny_model(0), tiny_model(0).state_dict()
    load_backbone(model, stock)
    weights, changed = load_file(stock / "model.safetensors"), 0
    for name, tensor in weights.items():
        ours = model.understanding.stock_key(name)
        assert torch.equal(model.state_dict()[ours], tensor), name
        changed += 1
    same = [name for name, tensor in model.state_dict().items() if torch.equal(tensor, before[name])]
    assert changed > 20
    understanding = [name for name in before if "understanding" in name]
    assert {name for name in before if name not in understanding} <= set(same)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda w: w.pop(next(k for k in w if "norm1.weight" in k)),
            r"missing understanding.visual.*norm1.weight",
        ),
        (lambda w: w.update({"audio.weight": torch.zeros(1)}), r"unexpected audio.weight \(1,\)"),
    ],
)
def test_what_does_not_fit_is_named(stock, tmp_path, change, message):
    weights = load_file(stock / "model.safetensors")
    change(weights)
    save_file(weights, tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError, match=message):
        load_backbone(tiny_model(0), tmp_path)
