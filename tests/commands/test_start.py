"""A new model starts from stock weights of its backbone and of its autoencoder, through the command."""

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.composed import composed
from tests.hub.stock_folder import stock_folder
from vla_mot.foresight import build_tokenizer

AUTOENCODER = {"channels": 32, "channel_multipliers": [1, 1], "blocks_per_level": 1, "image_size": [64, 64]}
COSMOS = (
    "foresight=cosmos",
    *(f"foresight.{key}={value}".replace(" ", "") for key, value in AUTOENCODER.items()),
    "foresight.offset_frames=6",
)


def first_weights(run) -> dict[str, torch.Tensor]:
    return load_file(run / "checkpoints" / "000000" / "pretrained_model" / "model.safetensors")


def test_a_backbone_from_a_stock_folder(vla_mot, training, tmp_path):
    backbone = composed("posttrain", "data.root=x", "output=x")["backbone"]
    folder = stock_folder(backbone, tmp_path / "stock")
    run = tmp_path / "run"
    said = vla_mot(*training, f"output={run}", "train.steps=1", f"backbone.weights={folder}")
    assert said.code == 0, said.err
    stock, ours = load_file(folder / "model.safetensors"), first_weights(run)
    query = "layers.1.self_attn.q_proj.weight"
    assert torch.equal(
        ours["stack.layers.1.experts.understanding.self_attn.q_proj.weight"],
        next(tensor for name, tensor in stock.items() if name.endswith(query)),
    )
    config = (run / "checkpoints" / "last" / "pretrained_model" / "config.json").read_text()
    assert str(folder) not in config, "where training started is no part of the architecture"


def test_a_policys_weights_keep_what_they_compute(vla_mot, training, trained, tmp_path):
    start = (*training, f"init_from={trained}", "train.steps=1")
    said = vla_mot(*start, f"output={tmp_path / 'run'}", "+model.mask_padding=false")
    assert said.code == 0, said.err
    assert "init_from  trained otherwise until now: mask_padding: True → False" in said.out
    said = vla_mot(*start, f"output={tmp_path / 'other'}", "backbone.rope_base=123")
    assert (said.code, "backbone.rope_base: " in said.err) == (2, True), said.err
    assert not (tmp_path / "other").exists()


def test_an_autoencoder_needs_weights(vla_mot, training, tmp_path):
    said = vla_mot(*training, f"output={tmp_path / 'run'}", "train.steps=1", *COSMOS)
    assert said.code == 2
    assert "'cosmos' means nothing with random weights: give foresight.weights=" in said.err
    assert not (tmp_path / "run").exists()


@pytest.fixture
def autoencoder(tmp_path):
    torch.manual_seed(5)
    weights = build_tokenizer({"type": "cosmos", **AUTOENCODER}).autoencoder.state_dict()
    save_file(weights, tmp_path / "cosmos.safetensors")
    return tmp_path / "cosmos.safetensors"


def test_an_autoencoder_from_a_file(vla_mot, training, tmp_path, autoencoder):
    run = tmp_path / "run"
    said = vla_mot(*training, f"output={run}", "train.steps=1", *COSMOS, f"foresight.weights={autoencoder}")
    assert said.code == 0, said.err
    ours = first_weights(run)
    for name, tensor in load_file(autoencoder).items():
        assert torch.equal(ours[f"tokenizer.autoencoder.{name}"], tensor), name


@pytest.mark.parametrize("key", ["backbone", "foresight"])
def test_weights_that_are_not_there(vla_mot, training, tmp_path, key):
    more = COSMOS if key == "foresight" else ()
    said = vla_mot(*training, f"output={tmp_path / 'run'}", *more, f"{key}.weights={tmp_path / 'nowhere'}")
    assert (said.code, "nowhere" in said.err) == (2, True)
    assert not (tmp_path / "run").exists()
