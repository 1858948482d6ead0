import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.infer.tiny_policy import HEAD, frames, states, tiny_policy
from vla_mot.errors import CheckpointError, ConfigError
from vla_mot.infer.policy import Policy

TASKS = ["pick the red block", "pick the blue block"]


def chunk(policy: Policy) -> torch.Tensor:
    pairs = {key: torch.stack((image, frames(2, 1)[key]), dim=1) for key, image in frames(2).items()}
    return policy.predict(pairs, states(2), TASKS, policy.noise([3, 4], 0)).actions


@pytest.fixture(scope="module")
def saved(policy, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("policies") / "tiny"
    policy.save_pretrained(folder)
    return folder


@pytest.fixture
def copy(saved, tmp_path) -> Path:
    """A checkpoint that a test may damage."""
    return Path(shutil.copytree(saved, tmp_path / "policy"))


def edit_config(folder: Path, **changes) -> None:
    config = json.loads((folder / "config.json").read_text()) | changes
    (folder / "config.json").write_text(json.dumps(config))


def edit_weights(folder: Path, change) -> None:
    weights = load_file(folder / "model.safetensors")
    change(weights)
    save_file(weights, folder / "model.safetensors")


# ---- round trip ---------------------------------------------------------------------------------------------


def test_a_saved_policy_acts_bit_by_bit_like_the_first(policy, saved):
    again = Policy.from_pretrained(saved)
    assert torch.equal(chunk(again), chunk(policy))
    ours, theirs = policy.model.state_dict(), again.model.state_dict()
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert again.spec.config_dict() == policy.spec.config_dict()
    assert again.spec.statistics_dict() == policy.spec.statistics_dict()


def test_saving_again_writes_the_same_bytes(saved, tmp_path):
    Policy.from_pretrained(saved).save_pretrained(tmp_path / "again")
    for file in saved.iterdir():
        assert (tmp_path / "again" / file.name).read_bytes() == file.read_bytes(), file.name


# ---- actions in physical units ------------------------------------------------------------------------------


def test_delta_actions_come_out_absolute_and_in_metres():
    """x and y are relative to the state at the chunk's start, the aperture is not: the same normalized output
    from two robots differs by exactly their states' difference, on those dimensions only."""
    delta, absolute = tiny_policy(action_mode="delta"), tiny_policy(action_mode="abs")
    with_state, without = chunk(delta), chunk(absolute)
    offset = torch.cat((states(2)[:, :2], torch.zeros(2, 1)), dim=1)[:, None]
    assert torch.allclose(with_state - without, offset.expand_as(with_state), atol=1e-6)


def test_the_normalization_is_undone():
    """A model that always predicts the mean (normalized 0) gives the statistics' mean."""
    policy = tiny_policy(action_mode="abs")
    physical = policy.processor.physical(torch.zeros(2, 4, 5), states(2))
    assert torch.allclose(physical, torch.tensor([0.01, -0.02, 0.08]).expand(2, 4, 3))
    assert chunk(policy).shape == (2, 4, 3)


def test_a_missing_camera_is_named(policy):
    pairs = {HEAD: torch.stack((frames(2)[HEAD],) * 2, dim=1)}
    with pytest.raises(
        ConfigError, match=r"'conveyor' expects cameras observation.images.gripper; got .*head"
    ):
        policy.predict(pairs, states(2), TASKS, policy.noise([3, 4], 0))


def test_a_state_of_another_width_is_refused(policy):
    pairs = {key: torch.stack((image,) * 2, dim=1) for key, image in frames(2).items()}
    with pytest.raises(ConfigError, match="state has 3 dimensions, embodiment 'conveyor' expects 4"):
        policy.predict(pairs, states(2)[:, :3], TASKS, policy.noise([3, 4], 0))


# ---- checkpoints that do not fit ----------------------------------------------------------------------------


@pytest.mark.parametrize("file", ["config.json", "model.safetensors", "stats.json"])
def test_a_missing_file_is_named(copy, file):
    (copy / file).unlink()
    with pytest.raises(CheckpointError, match=f"{file} is missing"):
        Policy.from_pretrained(copy)


def test_a_folder_that_is_not_there(tmp_path):
    with pytest.raises(CheckpointError, match=r"nowhere.*neither"):
        Policy.from_pretrained(tmp_path / "nowhere")


@pytest.mark.parametrize("kept", [0, 4, 100, 0.5, 0.999])
def test_truncated_weights_are_refused(copy, kept):
    """Cut off before, in and after the header."""
    path = copy / "model.safetensors"
    content = path.read_bytes()
    path.write_bytes(content[: int(kept * len(content)) if isinstance(kept, float) else kept])
    with pytest.raises(CheckpointError, match=r"model.safetensors \(\d+ bytes\) is truncated"):
        Policy.from_pretrained(copy)


def test_a_missing_weight_is_named(copy):
    edit_weights(copy, lambda weights: weights.pop("action.out_proj.bias"))
    with pytest.raises(CheckpointError, match=r"missing action.out_proj.bias \(5,\)\."):
        Policy.from_pretrained(copy)


def test_a_weight_too_many_is_named(copy):
    edit_weights(copy, lambda weights: weights.update({"action.extra": torch.zeros(2)}))
    with pytest.raises(CheckpointError, match=r"unexpected action.extra \(2,\)\."):
        Policy.from_pretrained(copy)


def test_a_misshapen_weight_is_named(copy):
    edit_weights(copy, lambda weights: weights.update({"action.out_proj.bias": torch.zeros(6)}))
    with pytest.raises(CheckpointError, match=r"out_proj.bias has shape \(6,\), the model's is \(5,\)"):
        Policy.from_pretrained(copy)


def test_a_weight_of_another_type_is_named(copy):
    edit_weights(copy, lambda weights: weights.update({"action.out_proj.bias": torch.zeros(5).half()}))
    with pytest.raises(CheckpointError, match=r"has dtype torch.float16, expected torch.float32"):
        Policy.from_pretrained(copy)


def test_every_problem_is_listed_at_once(copy):
    def damage(weights):
        weights["action.extra"] = weights.pop("action.out_proj.bias")

    edit_weights(copy, damage)
    with pytest.raises(CheckpointError, match=r"missing action.out_proj.bias .*; unexpected action.extra"):
        Policy.from_pretrained(copy)


def test_another_kind_of_policy_is_refused(copy):
    edit_config(copy, type="act")
    with pytest.raises(CheckpointError, match="says type 'act'; expected 'vla_mot', or qwena1 or interna1"):
        Policy.from_pretrained(copy)


def test_a_damaged_config_is_refused(copy):
    (copy / "config.json").write_text('{"type": "vla_mot"')
    with pytest.raises(CheckpointError, match=r"config\.json is damaged"):
        Policy.from_pretrained(copy)


def test_an_incomplete_config_says_what_it_lacks(copy):
    config = json.loads((copy / "config.json").read_text())
    del config["embodiments"]
    (copy / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match="lacks embodiments"):
        Policy.from_pretrained(copy)


def test_statistics_of_another_mode_do_not_serve(copy):
    edit_config(copy, action_mode="abs")
    with pytest.raises(
        CheckpointError,
        match=r"no robot with embodiment 'conveyor' in action mode 'abs'. It knows conveyor/delta",
    ):
        Policy.from_pretrained(copy)


def test_more_steps_than_the_chunk_has_are_refused(copy):
    edit_config(copy, n_action_steps=5)
    with pytest.raises(CheckpointError, match="n_action_steps must lie in 1 … chunk_size = 4, got 5"):
        Policy.from_pretrained(copy)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"n_action_steps": "many"}, "n_action_steps: expected a whole number, got 'many'"),
        ({"embodiments": "conveyor"}, "embodiments: expected a list, got 'conveyor'"),
        ({"embodiments": []}, "describes embodiments none, but stats.json has statistics of conveyor"),
        ({"dtype": "float8"}, "value for dtype: 'float8'"),
        ({"model": ["tiny"]}, "model: expected a group of keys"),
        (
            {"model": {"backbone": 3, "foresight": 3, "generation": 3, "action": 3}},
            "model.backbone: expected a group of keys, got 3",
        ),
    ],
)
def test_values_of_the_wrong_kind_are_a_checkpoint_error(copy, changes, message):
    edit_config(copy, **changes)
    with pytest.raises(CheckpointError, match=message):
        Policy.from_pretrained(copy)


def test_an_instruction_is_read_once_as_long_as_it_stands(policy, monkeypatch):
    read = []
    tokenize = policy.model.understanding.tokenize
    monkeypatch.setattr(
        policy.model.understanding, "tokenize", lambda texts: read.append(texts) or tokenize(texts)
    )
    images = {key: torch.stack((value, value), dim=1) for key, value in frames(1).items()}
    fresh = Policy(policy.model, policy.spec)
    for told in ("pick it", "pick it", "leave it", "pick it"):
        seen = fresh.observe(images, states(1), [told])
        assert torch.equal(seen.token_ids, tokenize([told])[0])
    assert read == [("pick it",), ("leave it",)]
