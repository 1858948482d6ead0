"""Weights go into a model that computes with them what they were trained to compute; what else changes is said."""

from pathlib import Path
from typing import Any

import pytest
import torch
from tests.infer.tiny_policy import tiny_policy
from tests.model.tiny import FAMILIES, backbone_options, tiny_model

from vla_mot.errors import CheckpointError
from vla_mot.hub.checkpoint import Checkpoint, open_checkpoint
from vla_mot.model.config import ModelConfig
from vla_mot.model.model import VlaMotModel


@pytest.fixture(scope="module", params=FAMILIES)
def family(request) -> str:
    return request.param


@pytest.fixture(scope="module")
def saved(family, tmp_path_factory) -> Checkpoint:
    folder = tmp_path_factory.mktemp("saved") / "policy"
    tiny_policy(family=family).save_pretrained(folder)
    return open_checkpoint(folder)


def changed(saved: Checkpoint, **options: Any) -> VlaMotModel:
    """A new model that differs from the saved one in these options; `backbone__name` for one of the backbone."""
    told = saved.spec.model.to_dict()
    for name, value in options.items():
        group, _, inner = name.partition("__")
        told = told | ({group: told[group] | {inner: value}} if inner else {name: value})
    return VlaMotModel(ModelConfig.from_dict(told))


def test_the_same_model_is_loaded_in_silence(saved):
    model = changed(saved)
    assert saved.load_into(model) == []
    loaded = saved.load().state_dict()
    assert all(torch.equal(tensor, loaded[name]) for name, tensor in model.state_dict().items())


def test_a_default_that_is_written_out_is_no_difference(saved):
    assert saved.load_into(changed(saved, backbone__rms_norm_eps=1e-6, foresight__block=8)) == []


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"backbone__rope_base": 1e6}, "backbone.rope_base: 100.0 → 1000000.0"),
        ({"backbone__rms_norm_eps": 1e-5}, "backbone.rms_norm_eps: 1e-06 → 1e-05"),
        ({"backbone__causal": True}, "backbone.causal: False → True"),
        ({"min_period": 0.01, "max_period": 2.0}, "max_period: 4.0 → 2.0; min_period: 0.004 → 0.01"),
    ],
)
def test_what_would_compute_something_else_is_refused(saved, options, said):
    model = changed(saved, **options)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(CheckpointError) as told:
        saved.load_into(model)
    assert said in str(told.value)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_internvl_text_and_edges(tmp_path):
    options = backbone_options("internvl3") | {"image_start_token_id": None, "image_end_token_id": None}
    tiny_policy(family="internvl3", backbone=options).save_pretrained(tmp_path / "policy")
    stock = tiny_model(0, "internvl3", backbone=backbone_options("internvl3", scale_text=True))
    with pytest.raises(CheckpointError) as told:
        open_checkpoint(tmp_path / "policy").load_into(stock)
    for said in ("backbone.image_start_token_id: None → 257", "backbone.scale_text: False → True"):
        assert said in str(told.value)


def test_another_family_is_named(saved, family):
    other = next(name for name in FAMILIES if name != family)
    with pytest.raises(CheckpointError, match=f"backbone.type: {family} → {other}"):
        saved.load_into(tiny_model(0, other))


def test_what_training_may_change_is_said(saved):
    model = changed(
        saved, mask_padding=False, action_loss="padded", positions="released", backbone__text_length=7
    )
    assert saved.load_into(model) == [
        "action_loss: real → padded",
        "backbone.text_length: 6 → 7",
        "mask_padding: True → False",
        "positions: real → released",
    ]


def test_the_documented_posttraining_of_a_converted_policy(goldens):
    """`model=a1_3b init_from=outputs/a1_3b`: a new model's conventions, the released policy's weights."""
    from tests.hub.test_released import opened

    found = opened(Path(goldens) / "a1_3b_tiny", "a1_3b_tiny")
    told = found.spec.model.to_dict() | {"mask_padding": True, "action_loss": "real", "positions": "real"}
    told["foresight"] = told["foresight"] | {"spatial_compression": 8}
    said = found.load_into(VlaMotModel(ModelConfig.from_dict(told)))
    assert said == [
        "action_loss: padded → real",
        "mask_padding: False → True",
        "positions: released → real",
    ]
