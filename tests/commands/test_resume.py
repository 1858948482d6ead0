"""`resume=auto`: the same words begin a run, continue it, and find it finished."""

import json
import shutil

import pytest
import yaml

AUTO = "resume=auto"


def stamps(run):
    return {path: path.stat().st_mtime_ns for path in (run / "checkpoints").rglob("*.safetensors")}


def test_the_same_words_begin_continue_and_find_a_run_finished(vla_mot, training, tmp_path):
    run = tmp_path / "run"
    (run / "launch").mkdir(parents=True)  # what started the ranks is no run
    (run / ".config.yaml.unfinished").write_text("killed here")
    words = (*training, f"output={run}", AUTO)
    said = vla_mot(*words, "train.steps=2")
    assert (said.code, "resumed at" in said.out) == (0, False), said.err
    assert yaml.safe_load((run / "config.yaml").read_text())["resume"] is None
    said = vla_mot(*words, "train.steps=4")
    assert (said.code, "resumed at step 2" in said.out) == (0, True), said.err
    before = stamps(run)
    said = vla_mot(*words, "train.steps=4")
    assert (said.code, f"policy: {run / 'checkpoints' / '000004'}" in said.out) == (0, True), said.err
    assert stamps(run) == before


def test_a_continued_run_is_the_uninterrupted_one(vla_mot, training, trained, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(trained, run, symlinks=True)
    shutil.rmtree(run / "checkpoints" / "000004")  # as if it had been killed before
    (run / "checkpoints" / "last").unlink()
    (run / "checkpoints" / "last").symlink_to("000002")
    said = vla_mot(*training, f"output={run}", AUTO, "train.steps=4")
    assert (said.code, "resumed at step 2" in said.out) == (0, True), said.err
    policy = "checkpoints/last/pretrained_model/model.safetensors"
    assert (run / policy).read_bytes() == (trained / policy).read_bytes()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("train.seed=1", "train.seed is 0 there, 1 was asked"),
        ("train.steps=3", "the run has 4 steps already; train.steps=3 lies behind that"),
    ],
)
def test_another_configuration_is_refused(vla_mot, training, trained, change, message):
    before = stamps(trained)
    said = vla_mot(*training, f"output={trained}", AUTO, "train.steps=4", change)
    assert (said.code, message in said.err) == (2, True), said.err
    assert stamps(trained) == before


def test_what_is_no_run_is_not_trained_over(vla_mot, training, tmp_path):
    (tmp_path / "notes.json").write_text(json.dumps("of somebody"))
    said = vla_mot(*training, f"output={tmp_path}", AUTO)
    assert (said.code, "is already used (it holds notes.json)" in said.err) == (2, True), said.err


def test_it_needs_an_output_folder(vla_mot, training):
    said = vla_mot(*training, AUTO)
    assert (said.code, "output must be given" in said.err) == (2, True), said.err
