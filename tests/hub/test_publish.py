"""What a checkpoint says about itself for its model card, and what `push_to_hub` refuses before anything is sent."""

from dataclasses import replace
from pathlib import Path

import pytest
from tests.infer.tiny_policy import tiny_policy

from vla_mot.errors import CheckpointError, ConfigError
from vla_mot.hub.card import model_card
from vla_mot.hub.checkpoint import open_checkpoint
from vla_mot.hub.manifest import identity, versions
from vla_mot.hub.native import save_policy
from vla_mot.hub.publish import card_facts, checkpoint_facts
from vla_mot.robots.robot import Robot

NAME, LICENSE = "org/policy", "apache-2.0"
TRAINING = {
    "train": {"steps": 6000, "batch_size": 128, "lr": 5e-5, "optimizer": "muon", "betas": [0.9, 0.95]},
    "data": {"root": "/disk/somebody/data/conveyor", "repo_id": None},
    "backbone": {"weights": "Qwen/Qwen3-VL-2B-Instruct"},
    "init_from": "/disk/somebody/outputs/earlier",
}


@pytest.fixture
def folder(tmp_path) -> Path:
    policy = tiny_policy()
    save_policy(tmp_path / "policy", policy.spec, policy.model.state_dict(), training=TRAINING)
    return tmp_path / "policy"


def test_a_policy_says_what_it_is():
    facts = card_facts(tiny_policy().spec, NAME, license=LICENSE, numbers=12345)
    (robot,) = facts.robots
    assert (robot.name, robot.fps, robot.action_mode) == ("conveyor", 10, "delta")
    assert robot.cameras == ("observation.images.head", "observation.images.gripper")
    assert robot.state == "x [m] y [m] aperture [m] grip [1]"
    assert robot.action == "x [m, delta] y [m, delta] aperture [m]"
    assert (facts.title, facts.chunk_size, facts.n_action_steps, facts.num_steps) == ("policy", 4, 3, 3)
    assert facts.foresight == "3 frames = 0.3 s back and ahead, tokenizer dct"
    assert facts.architecture["weights"] == "12,345 numbers, float32"
    assert facts.architecture["tokenizer of instructions"] == "byte"
    assert "- chunk: 4 actions = 0.4 s predicted, 3 executed" in model_card(facts).splitlines()


def test_absolute_actions_are_relative_to_nothing():
    facts = card_facts(tiny_policy(action_mode="abs").spec, NAME, license=LICENSE)
    assert facts.robots[0].action == "x [m] y [m] aperture [m]"


def test_a_robot_without_a_rate_counts_in_frames():
    spec = tiny_policy().spec
    body = replace(spec.robots[0].embodiment, fps=None)
    facts = card_facts(replace(spec, robots=(Robot(body, spec.robots[0].statistics),)), NAME, license=LICENSE)
    assert facts.foresight == "3 frames back and ahead, tokenizer dct"
    card = model_card(facts)
    assert "| conveyor | its dataset's |" in card
    assert "- chunk: 4 actions predicted, 3 executed" in card.splitlines()


def test_a_checkpoint_says_how_it_was_trained_but_not_where(folder):
    facts = checkpoint_facts(open_checkpoint(folder), NAME, license=LICENSE, steps=2000)
    assert facts.training == {
        "steps": "2,000 of 6,000",
        "batch size": 128,
        "lr": 5e-5,
        "optimizer": "muon",
        "backbone started from": "Qwen/Qwen3-VL-2B-Instruct",
        "policy started from": "earlier",
    }
    assert facts.dataset == "conveyor, 100 training frames"
    assert facts.versions == versions()
    assert "/disk" not in model_card(facts)
    finished = checkpoint_facts(open_checkpoint(folder), NAME, license=LICENSE, steps=6000)
    assert finished.training["steps"] == 6000
    assert "steps" not in checkpoint_facts(open_checkpoint(folder), NAME, license=LICENSE).training


def test_what_is_told_replaces_what_is_found(folder):
    facts = checkpoint_facts(
        open_checkpoint(folder), NAME, license=LICENSE, dataset="in words", notes="Two colours."
    )
    assert (facts.dataset, facts.notes) == ("in words", "Two colours.")
    with pytest.raises(ConfigError, match=r"unknown part of a model card 'note'\. Did you mean 'notes'"):
        card_facts(tiny_policy().spec, NAME, license=LICENSE, note="Two colours.")


def test_a_policy_without_a_robot_gets_no_card():
    spec = replace(tiny_policy().spec, robots=())
    with pytest.raises(ConfigError, match="at least one embodiment"):
        card_facts(spec, NAME, license=LICENSE)


def test_checkpoints_are_told_apart_by_what_they_hold(folder, tmp_path):
    policy = tiny_policy()
    save_policy(tmp_path / "same", policy.spec, policy.model.state_dict(), training=TRAINING)
    save_policy(tmp_path / "other", policy.spec, tiny_policy(1).model.state_dict(), training=TRAINING)
    assert identity(folder) == identity(tmp_path / "same") != identity(tmp_path / "other")
    assert identity(tmp_path) is None


@pytest.mark.parametrize(
    ("name", "options", "error", "said"),
    [
        ("policy", {}, CheckpointError, "neither an existing folder nor a Hub repository id"),
        (NAME, {"license": "Apache 2.0"}, ConfigError, "Did you mean 'apache-2.0'"),
        (NAME, {"revision": "a" * 40}, CheckpointError, "is no branch to upload to"),
        (NAME, {"revision": "trial two"}, CheckpointError, "expected a name such as main"),
        (NAME, {"message": " "}, CheckpointError, "message: expected the commit's first line"),
        (NAME, {"color": "red"}, ConfigError, "unknown part of a model card 'color'"),
        (NAME, {"token": None}, CheckpointError, "without a token"),
        (NAME, {}, CheckpointError, "the network is forbidden by HF_HUB_OFFLINE=1"),
    ],
)
def test_what_does_not_fit_is_refused_before_anything_is_written(
    name, options, error, said, tmp_path, monkeypatch
):
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    if "network" not in said:
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    with pytest.raises(error, match=said):
        tiny_policy().push_to_hub(name, **{"license": LICENSE, "token": "hf_owner"} | options)
    assert list(tmp_path.iterdir()) == []


def test_a_licence_must_be_given():
    with pytest.raises(TypeError, match="license"):
        tiny_policy().push_to_hub(NAME)
