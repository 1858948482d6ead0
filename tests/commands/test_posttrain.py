import json
import os
import shutil
import sys
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file

from tests.train.runs import logged, saved_state
from tests.waiting import ctrl_c_once, steps_done
from vla_mot.infer.policy import Policy
from vla_mot.train.log import read_log


def weights(run: Path) -> dict[str, torch.Tensor]:
    policy = load_file(run / "checkpoints" / "last" / "pretrained_model" / "model.safetensors")
    return policy | saved_state(run / "checkpoints" / "last")


def assert_same_weights(one: Path, other: Path) -> None:
    mine, theirs = weights(one), weights(other)
    assert mine.keys() == theirs.keys()
    assert [name for name in mine if not torch.equal(mine[name], theirs[name])] == []


def test_a_run_leaves_what_is_needed(trained, dataset):
    config = yaml.safe_load((trained / "config.yaml").read_text())
    assert config["data"]["root"] == str(dataset)
    assert config["train"]["steps"] == 4
    assert {record["kind"] for record in read_log(trained)} == {"train", "validation"}
    assert "machine/utilisation" not in read_log(trained)[0], "train.log.utilisation=false"
    assert list((trained / "tensorboard").iterdir())
    policy = Policy.from_pretrained(trained / "checkpoints" / "last" / "pretrained_model")
    assert policy.robot.embodiment.name == "conveyor"
    std = policy.model.tokenizer.latent_std
    assert bool((std != 1).all()), "the tokenizer was not fitted"


def test_the_offset_is_said_back_in_frames_and_seconds(vla_mot, training, tmp_path):
    offset = ("foresight.offset_frames=null", "foresight.offset_seconds=0.4")
    said = vla_mot(*training, f"output={tmp_path / 'run'}", "train.steps=1", *offset)
    assert said.code == 0
    assert "4 frames = 0.4 s" in said.out
    assert "chunk 12 steps = 1.2 s" in said.out


def test_a_longer_resumed_run_equals_an_uninterrupted_one(vla_mot, training, trained, tmp_path):
    constant = "train.schedule=constant"
    first, whole = tmp_path / "first", tmp_path / "whole"
    assert vla_mot(*training, constant, f"output={first}", "train.steps=3").code == 0
    said = vla_mot("posttrain", f"resume={first}", "train.steps=6")
    assert said.code == 0
    assert "resumed with another train.steps: 3 → 6" in said.out
    assert "resumed at step 3" in said.out
    assert vla_mot(*training, constant, f"output={whole}", "train.steps=6").code == 0
    assert_same_weights(first, whole)
    extra = [record for record in logged(first) if record not in logged(whole)]
    assert {(record["kind"], record["step"]) for record in extra} == {("validation", 3)}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("train.lr=1e-5",), "train.lr is 0.003 there, 1e-05 was asked"),
        (("model.chunk_size=4",), "model.chunk_size is 12 there, 4 was asked"),
        (("train=posttrain",), "train.lr is 0.003 there, 5e-05 was asked"),
        (("output=/elsewhere",), "a resumed run stays in its folder"),
        (("train.steps=2",), "has 4 steps already"),
    ],
)
def test_a_resumed_run_keeps_its_configuration(vla_mot, trained, change, message):
    before = {path: path.stat().st_mtime_ns for path in trained.rglob("*") if path.is_file()}
    said = vla_mot("posttrain", f"resume={trained}", *change)
    assert said.code == 2
    assert message in said.err
    assert {path: path.stat().st_mtime_ns for path in trained.rglob("*") if path.is_file()} == before


def test_resuming_with_the_same_words_is_no_change(vla_mot, training, tmp_path):
    run = tmp_path / "run"
    assert vla_mot(*training, f"output={run}", "train.steps=2").code == 0
    said = vla_mot(*training, f"output={run}", "train.steps=2", f"resume={run}")
    assert (said.code, "resumed at step 2" in said.out) == (0, True)


def test_resuming_what_is_no_run(vla_mot, tmp_path):
    said = vla_mot("posttrain", f"resume={tmp_path}")
    assert (said.code, "is no run to resume: it has no config.yaml" in said.err) == (2, True)


def test_resuming_on_other_data(vla_mot, trained, tmp_path, frames):
    other, run = tmp_path / "other", tmp_path / "run"
    assert vla_mot("data", "record", f"output={other}", "episodes=3", "seed=50").code == 0
    shutil.copytree(trained, run, symlinks=True)
    said = vla_mot("posttrain", f"resume={run}", f"data.root={other}", "train.steps=6")
    assert (said.code, "was trained on other data" in said.err) == (2, True)


def test_init_from_starts_a_new_run_from_weights(vla_mot, training, trained, tmp_path):
    run = tmp_path / "run"
    start = ("train.lr=1e-30", "train.warmup_steps=0", "train.weight_decay=0", "train.ema_decay=0")
    said = vla_mot(*training, f"output={run}", f"init_from={trained}", "train.steps=1", *start)
    assert said.code == 0
    policy = "checkpoints/last/pretrained_model/model.safetensors"
    mine, theirs = load_file(run / policy), load_file(trained / policy)
    for name in theirs:
        assert torch.allclose(mine[name], theirs[name], atol=1e-8), name


def test_a_run_killed_before_its_first_checkpoint_begins_again_with_the_same_weights(
    vla_mot, training, trained, tmp_path
):
    run, whole = tmp_path / "run", tmp_path / "whole"
    assert vla_mot(*training, f"output={whole}", f"init_from={trained}", "train.steps=1").code == 0
    shutil.copytree(whole, run, ignore=shutil.ignore_patterns("checkpoints"))
    said = vla_mot("posttrain", f"resume={run}")
    assert (said.code, "training starts from the beginning" in said.out) == (0, True)
    assert_same_weights(run, whole)


def test_a_resumed_run_no_longer_needs_what_it_began_with(vla_mot, training, trained, tmp_path):
    run, start = tmp_path / "run", tmp_path / "start"
    shutil.copytree(trained / "checkpoints" / "last" / "pretrained_model", start)
    assert vla_mot(*training, f"output={run}", f"init_from={start}", "train.steps=1").code == 0
    shutil.rmtree(start)
    assert vla_mot("posttrain", f"resume={run}", "train.steps=2").code == 0


def test_an_interrupt_at_any_moment_says_what_is_kept(vla_mot, training, trained, tmp_path, monkeypatch):
    def interrupted(config, shards, ranks):
        raise KeyboardInterrupt

    monkeypatch.setattr("vla_mot.commands.mixing.open_data", interrupted)
    said = vla_mot(*training, f"output={tmp_path / 'run'}")
    told = f"interrupted. Nothing was written to {tmp_path / 'run'}; the same command starts again."
    assert (said.code, told in said.err) == (130, True)
    said = vla_mot("posttrain", f"resume={trained}")
    assert said.code == 130
    assert f"The last checkpoint is {trained / 'checkpoints' / '000004'}" in said.err
    assert f"vla-mot posttrain resume={trained}" in said.err


@pytest.mark.parametrize(
    ("package", "change", "extra"),
    [
        ("bitsandbytes", "train.optimizer=adamw8bit", "8bit"),
        ("peft", "train.experts.action.adapter={kind: lora}", "peft"),
    ],
)
def test_what_is_not_installed_is_named_before_anything_is_counted(
    vla_mot, training, tmp_path, monkeypatch, package, change, extra
):
    monkeypatch.setitem(sys.modules, package, None)
    said = vla_mot(*training, f"output={tmp_path / 'run'}", change)
    assert (said.code, f"needs {package}: pip install 'vla-mot[{extra}]'" in said.err) == (2, True), said.err
    assert "count" not in said.out and not (tmp_path / "run").exists()


def test_one_run_per_value(vla_mot, training, tmp_path):
    said = vla_mot(*training, f"output={tmp_path / 'sweep'}", "train.steps=1", "train.seed=0,1", "--multirun")
    assert said.code == 0
    seeds = [
        yaml.safe_load((tmp_path / "sweep" / n / "config.yaml").read_text())["train"]["seed"] for n in "01"
    ]
    assert seeds == [0, 1]


def test_ctrl_c_leaves_a_resumable_run(vla_mot, training, tmp_path):
    run, whole = tmp_path / "run", tmp_path / "whole"
    settings = ("train.steps=400", "train.save_every=1000", "train.val_every=1000", "train.schedule=constant")
    with ctrl_c_once(lambda: steps_done(run) >= 3):
        said = vla_mot(*training, f"output={run}", *settings)
    assert said.code == 130
    assert f"vla-mot posttrain resume={run}" in said.err
    assert "Traceback" not in said.err
    kept = int(os.readlink(run / "checkpoints" / "last"))
    assert kept >= 3
    assert vla_mot("posttrain", f"resume={run}", f"train.steps={kept + 2}").code == 0
    whole_run = (*training, *settings, f"output={whole}", f"train.steps={kept + 2}")
    assert vla_mot(*whole_run).code == 0
    assert_same_weights(run, whole)


def test_a_policy_does_not_say_where_it_was_trained(trained, dataset):
    """`training.json` travels with the policy, perhaps onto the Hub."""
    text = (trained / "checkpoints" / "last" / "pretrained_model" / "training.json").read_text()
    told = json.loads(text)
    assert told["data"]["root"] == dataset.name
    assert str(dataset.parent) not in text and str(trained.parent) not in text
    assert told["train"]["steps"] == 4
