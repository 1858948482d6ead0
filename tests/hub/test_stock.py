"""A new model's understanding expert starts from a folder that transformers wrote, whole or not at all."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tests.hub.stock_folder import stock_folder
from tests.model.tiny import tiny_model

from vla_mot.errors import CheckpointError
from vla_mot.hub.stock import load_backbone


@pytest.fixture(scope="module")
def stock(tmp_path_factory) -> Path:
    """A random Qwen3-VL of the shape of `tiny_model`'s, saved by transformers itself."""
    return stock_folder(tiny_model(0).config.backbone, tmp_path_factory.mktemp("stock"))


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
