"""Checkpoints in the authors' layout open, act, convert into ours and back without loss; damaged ones are refused."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file

from vla_mot.errors import CheckpointError, ConfigError
from vla_mot.hub.checkpoint import Checkpoint, open_checkpoint
from vla_mot.hub.files import read_json
from vla_mot.hub.released import save_released
from vla_mot.hub.tensors import Weights
from vla_mot.infer.policy import Policy
from vla_mot.infer.verify import verify
from vla_mot.model.model import VlaMotModel

ARCHITECTURES = Path(__file__).parents[1] / "goldens"
KINDS = ["a1_3b_tiny", "a1_2b_tiny"]
NORMS = ("input_layernorm", "post_attention_layernorm", "language_model.norm")
UND = "model.qwen3_vl_with_expert.und_expert."


def architecture(kind: str) -> dict[str, Any]:
    return yaml.safe_load((ARCHITECTURES / f"{kind}.yaml").read_text())


def numbers(width: int) -> dict[str, list[float]]:
    row = [0.1 * i for i in range(width)]
    return {"min": [-1.0] * width, "max": [2.0] * width, "mean": row, "std": [1.0] * width, "count": [7]}


def statistics() -> dict[str, Any]:
    """A robot that is known (by an alias), one that is not, and one that lacks a feature."""
    joints = {"states.joint.position": numbers(6), "states.gripper.position": numbers(1)}
    actions = {"actions.joint.position": numbers(6), "actions.gripper.position": numbers(1)}
    return {
        "Franka": {key: numbers(7) if "joint" in key else value for key, value in (joints | actions).items()},
        "toaster": {"observation.state": numbers(2)},
        "aloha": {"action": numbers(14)},
    }


@pytest.fixture(params=KINDS)
def kind(request) -> str:
    return request.param


@pytest.fixture
def copy(goldens, kind, tmp_path) -> Path:
    folder = tmp_path / kind
    folder.mkdir()
    for name in ("config.json", "model.safetensors"):
        shutil.copy(goldens / kind / name, folder / name)
    return folder


def opened(folder: Path, kind: str, **options: Any) -> Checkpoint:
    return open_checkpoint(folder, architecture=architecture(kind), **options)


def test_the_released_conventions_come_with_the_layout(goldens, kind):
    model = opened(goldens / kind, kind).spec.model
    assert (model.mask_padding, model.action_loss, model.offset_frames) == (False, "padded", 15)
    assert model.positions == ("released" if kind == "a1_3b_tiny" else "real")
    if kind == "a1_2b_tiny":
        backbone = model.backbone
        assert (backbone["rope_base"], backbone["scale_text"]) == (1e4, True)
        assert backbone["vision"]["attention_bias"] is False and backbone["image_start_token_id"] is None


def test_there_and_back_without_loss(goldens, kind, tmp_path):
    found = opened(goldens / kind, kind)
    Policy(found.load(), found.spec).save_pretrained(tmp_path / "ours")
    again = open_checkpoint(tmp_path / "ours")
    assert again.layout == "native" and again.spec == found.spec
    save_released(tmp_path / "theirs", again.spec, again.load().state_dict())
    before, after = Weights.open(goldens / kind), Weights.open(tmp_path / "theirs")
    assert before.metadata() == after.metadata()
    ours, theirs = before.read(), after.read()
    assert ours.keys() == theirs.keys()
    for name, tensor in ours.items():
        assert tensor.dtype == theirs[name].dtype and torch.equal(tensor, theirs[name]), name
    assert read_json(tmp_path / "theirs" / "config.json") == read_json(goldens / kind / "config.json")


def test_both_layouts_act_alike(goldens, kind, tmp_path):
    found = opened(goldens / kind, kind)
    policy = Policy(found.load(), found.spec)
    policy.save_pretrained(tmp_path / "ours")
    checks = {check.name: check for check in verify(open_checkpoint(tmp_path / "ours"))}
    assert checks["files"].passed and checks["weights"].passed and checks["golden answer"].passed
    assert "actions differ by 0.0e+00" in checks["golden answer"].text


def test_mixed_dtypes_survive(copy, kind, tmp_path):
    """As a real checkpoint has them: bfloat16 but for some norms, and the autoencoder in bfloat16."""
    weights = load_file(copy / "model.safetensors")
    for name, tensor in weights.items():
        if tensor.is_floating_point() and not any(part in name for part in NORMS):
            weights[name] = tensor.bfloat16()
    save_file(weights, copy / "model.safetensors")
    found = opened(copy, kind)
    assert found.spec.model.foresight["dtype"] == "bfloat16"
    Policy(found.load(), found.spec).save_pretrained(tmp_path / "ours")
    again = open_checkpoint(tmp_path / "ours")
    save_released(tmp_path / "theirs", again.spec, again.load().state_dict())
    theirs = load_file(tmp_path / "theirs" / "model.safetensors")
    assert all(torch.equal(theirs[name], tensor) for name, tensor in weights.items())
    assert {name: x.dtype for name, x in theirs.items()} == {name: x.dtype for name, x in weights.items()}
    wide = found.load(dtype=torch.float32)
    assert wide.action.out_proj.weight.dtype == torch.float32


def test_statistics_bind_the_robots_that_are_known(copy, kind, caplog):
    (copy / "stats.json").write_text(json.dumps(statistics()))
    found = opened(copy, kind)
    (robot,) = found.spec.robots
    assert str(robot) == "franka/delta"
    assert robot.statistics.state.mean[:7].tolist() == pytest.approx([0.1 * i for i in range(7)])
    assert robot.statistics.action.count == 7
    for said in ("'toaster' are kept, but no embodiment", "'aloha' are kept, but lack observation.state"):
        assert said in caplog.text
    assert "taken as delta" in caplog.text
    assert found.spec.released.statistics == statistics()


def test_the_action_mode_is_read_where_it_is_written(copy, kind):
    (copy / "stats.json").write_text(json.dumps(statistics()))
    (copy / "train_config.json").write_text(json.dumps({"dataset": {"action_mode": "abs"}}))
    assert opened(copy, kind).spec.robots[0].action_mode == "abs"
    assert opened(copy, kind, action_mode="delta").spec.robots[0].action_mode == "delta"


def test_a_policy_of_several_robots_acts_once_one_was_chosen(copy, kind, tmp_path):
    told = {"Franka": statistics()["Franka"]}
    told["panda"] = {"action": numbers(7), "observation.state": numbers(8)}
    (copy / "stats.json").write_text(json.dumps(told))
    found = open_checkpoint(copy, architecture=architecture(kind), action_mode="abs")
    assert [str(robot) for robot in found.spec.robots] == ["franka/abs", "panda/abs"]
    policy = Policy.from_pretrained(copy, architecture=architecture(kind), action_mode="abs")
    with pytest.raises(ConfigError, match="fits 2 robots of the policy: franka/abs, panda/abs"):
        _ = policy.robot
    assert policy.for_robot("Franka").robot.embodiment.name == "franka"
    chosen = Policy.from_pretrained(copy, architecture=architecture(kind), embodiment="panda")
    assert str(chosen.robot) == "panda/delta"
    with pytest.raises(ConfigError, match="no robot with embodiment 'toaster'"):
        Policy.from_pretrained(copy, architecture=architecture(kind), embodiment="toaster")


def test_training_starts_from_the_released_layout_too(goldens, kind):
    found = opened(goldens / kind, kind)
    model = VlaMotModel(found.spec.model)
    found.load_into(model)
    loaded = found.load().state_dict()
    assert all(torch.equal(tensor, loaded[name]) for name, tensor in model.state_dict().items())


def test_statistics_without_a_count_are_no_traceback(copy, kind):
    told = {"Franka": statistics()["Franka"]}
    told["Franka"]["states.joint.position"]["count"] = []
    (copy / "stats.json").write_text(json.dumps(told))
    with pytest.raises(CheckpointError, match="a value of the wrong kind"):
        opened(copy, kind)


def test_what_shapes_leave_open_must_be_said(goldens, kind):
    with pytest.raises(CheckpointError, match=r"none of the published .*vision.num_heads.*vla-mot convert"):
        open_checkpoint(goldens / kind)


def damage(copy: Path, change) -> None:
    weights = load_file(copy / "model.safetensors")
    change(weights)
    save_file(weights, copy / "model.safetensors")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda w: w.pop("model.state_proj.bias"), r"missing action.state_proj.bias"),
        (lambda w: w.update({"model.else": torch.zeros(1)}), r"unexpected model.else \(1,\)"),
        (
            lambda w: w.update({"model.state_proj.bias": torch.zeros(3)}),
            r"state_proj.bias.* has shape \(3,\)",
        ),
        (
            lambda w: w.update({"model.state_proj.bias": w["model.state_proj.bias"].long()}),
            "has dtype torch.int64",
        ),
    ],
)
def test_weights_that_do_not_fit_are_named(copy, kind, change, message):
    damage(copy, change)
    with pytest.raises(CheckpointError, match=message):
        opened(copy, kind).load()


def test_a_tied_weight_stored_twice_is_refused(goldens, tmp_path):
    folder = tmp_path / "copy"
    shutil.copytree(goldens / "a1_3b_tiny", folder, copy_function=shutil.copyfile)
    damage(
        folder,
        lambda w: w.update({f"{UND}model.language_model.embed_tokens.weight": w[f"{UND}lm_head.weight"] + 1}),
    )
    with pytest.raises(CheckpointError, match="embed_tokens"):
        opened(folder, "a1_3b_tiny").load()


@pytest.mark.parametrize("lost", ["lm_head.weight", "embed_tokens.weight"])
def test_a_lost_embedding_is_named(goldens, tmp_path, lost):
    kind = "a1_3b_tiny" if lost == "lm_head.weight" else "a1_2b_tiny"
    folder = tmp_path / "copy"
    shutil.copytree(goldens / kind, folder, copy_function=shutil.copyfile)
    damage(folder, lambda w: w.pop(next(name for name in w if name.endswith(lost))))
    with pytest.raises(CheckpointError, match=lost):
        opened(folder, kind).load()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"chunk_size": None}, "lacks chunk_size"),
        ({"chunk_size": "six"}, "chunk_size: expected a whole number"),
        ({"time_sampling_beta_beta": 2.0}, r"Beta\(α, 2.0\)"),
        ({"type": "pi0"}, "says type 'pi0'; expected 'vla_mot', or qwena1 or interna1"),
    ],
)
def test_a_configuration_that_is_none_is_refused(copy, kind, change, message):
    config = read_json(copy / "config.json") | change
    (copy / "config.json").write_text(json.dumps({k: v for k, v in config.items() if v is not None}))
    with pytest.raises(CheckpointError, match=message):
        opened(copy, kind)


def test_a_policy_of_ours_has_no_place_in_that_layout(tmp_path):
    from tests.infer.tiny_policy import tiny_policy

    policy = tiny_policy()
    with pytest.raises(ConfigError, match="not made from a checkpoint in the authors' layout"):
        save_released(tmp_path, policy.spec, policy.model.state_dict())
