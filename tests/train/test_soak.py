"""A run that is hard to kill: at any moment, with a full disk, with what was written cut short, with broken numbers."""

import json
import logging
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tests.full_disk import full_disk
from tests.train.runs import MemoryStream, logged, trainer
from tests.train.soak import Ending
from tests.train.test_loop import assert_bitwise_equal, state_of

from vla_mot.batch import Batch
from vla_mot.errors import CheckpointError, NonFiniteLossError
from vla_mot.train.checkpoint import find_checkpoint
from vla_mot.train.config import SafetyConfig

SEED, KILLS = 5, 20


def tensors_of(checkpoint: Path) -> dict[str, torch.Tensor]:
    """Everything that a checkpoint holds as tensors, by file and name: weights, averaged weights, optimizer."""
    return {
        f"{file.relative_to(checkpoint)}: {name}": tensor
        for file in sorted(checkpoint.rglob("*.safetensors"))
        for name, tensor in load_file(file).items()
    }


@pytest.mark.multiprocess
@pytest.mark.slow
def test_a_run_that_is_killed_twenty_times_ends_as_if_it_had_been_left_alone(tmp_path: Path) -> None:
    words = [sys.executable, "-m", "tests.train.soak", str(tmp_path), str(SEED), str(KILLS)]
    done = subprocess.run(words, cwd=Path(__file__).parents[2], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert (found["while_writing"]["writing"], found["while_writing"]["between"]) == (KILLS // 2, 0)
    assert found["reached"] > 20  # steps, from one life to the next
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    mine, theirs = (tensors_of(find_checkpoint(run)) for run in (killed, whole))
    assert sum("optimizer" in name for name in theirs) > 50
    assert_bitwise_equal(mine, theirs)
    assert logged(killed) == logged(whole)
    assert not list((killed / "checkpoints").glob(".unfinished-*"))


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The last checkpoint of a short run; nothing may change it."""
    return trainer(tmp_path_factory.mktemp("finished")).run()


@pytest.mark.parametrize("part", [0.0, 0.5, 1.0], ids=["emptied", "halved", "its end lost"])
def test_a_checkpoint_whose_file_was_cut_short_is_refused_by_name(
    finished: Path, tmp_path: Path, part: float
) -> None:
    names = sorted(path.name for path in (finished / "training_state").iterdir())
    assert len(names) >= 3
    for name in names:
        copy = tmp_path / name / finished.name
        shutil.copytree(finished, copy)
        damaged = copy / "training_state" / name
        whole = damaged.read_bytes()
        damaged.write_bytes(whole[: int(part * (len(whole) - 2))])  # more than the newline after JSON
        with pytest.raises(CheckpointError, match=re.escape(name)):
            trainer(tmp_path / "resumed").resume(copy)


# TensorBoard writes in a thread, which says so for itself.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
@pytest.mark.parametrize("save_async", [False, True], ids=["sync", "async"])
def test_a_disk_that_fills_up_ends_the_run_which_goes_on_once_there_is_room(
    tmp_path: Path, save_async: bool
) -> None:
    whole = trainer(tmp_path / "whole")
    whole.run()
    run = trainer(tmp_path / "run", save_async=save_async)

    def fill_up(step: int, numbers: object) -> None:
        if step == 3:
            run.checkpoints.finish()  # step 2, which may still be written
            disk.__enter__()

    disk = full_disk(4000)
    try:
        with pytest.raises(OSError, match=r"cannot be written|too large|No space"):
            run.run(fill_up)
    finally:
        disk.__exit__(None, None, None)
    checkpoints = {path.name for path in (tmp_path / "run" / "checkpoints").iterdir()}
    assert checkpoints == {"000000", "000002", "last"}
    again = trainer(tmp_path / "run")
    again.resume(find_checkpoint(tmp_path / "run"))
    again.run()
    assert_bitwise_equal(state_of(again), state_of(whole))
    assert logged(tmp_path / "run") == logged(tmp_path / "whole")


SKIP = SafetyConfig(not_finite="skip", skip_steps=1)


def test_a_broken_batch_is_left_out_and_the_run_goes_on_without_it(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run = trainer(tmp_path / "run", MemoryStream(spoil_step=3), safety=SKIP)
    with caplog.at_level(logging.WARNING, logger="vla_mot"):
        run.run()
    assert "step 3 is left out (1 of at most 1" in caplog.text
    assert "what was drawn for step 3" in caplog.text
    assert run.progress.skipped == 1
    assert run.progress.step == 6
    assert all(bool(tensor.isfinite().all()) for tensor in state_of(run).values())
    steps = [record["step"] for record in logged(tmp_path / "run") if record["kind"] == "skipped"]
    assert steps == [4]


def test_what_is_left_out_changes_neither_weights_nor_averages_nor_optimizer(tmp_path: Path) -> None:
    before = trainer(tmp_path / "before", steps=4, save_every=100)
    before.stream = Ending(3)
    before.run()
    after = trainer(tmp_path / "after", MemoryStream(spoil_step=3), steps=4, save_every=100, safety=SKIP)
    after.run()
    assert_bitwise_equal(state_of(after), state_of(before))


def test_a_gradient_that_is_no_number_is_left_out_though_the_loss_is_one(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run = trainer(tmp_path, steps=1, safety=SKIP)
    before = {name: tensor.clone() for name, tensor in state_of(run).items()}
    run.model.action.out_proj.bias.register_hook(lambda gradient: gradient / 0)
    run.run()
    assert "step 0 is left out (1 of at most 1, train.safety.skip_steps): grad_norm is not" in caplog.text
    assert_bitwise_equal(state_of(run), before)


class Jumping(MemoryStream):
    """At one step, actions that nobody ever showed."""

    def batches(self, start: int = 0, stop: int | None = None, prefetch: int = 2) -> Iterator[Batch]:
        for step, batch in enumerate(super().batches(start, stop, prefetch), start=start):
            yield replace(batch, actions=100 * batch.actions) if step == 24 else batch


def test_a_spike_is_told_and_logged_also_by_a_run_that_was_just_resumed(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    rare = {"steps": 26, "save_every": 23, "val_every": 100, "lr": 1e-5}
    first = trainer(tmp_path, **rare)
    first.stream = Ending(23)
    first.run()
    again = trainer(tmp_path, Jumping(), **rare)
    again.resume(find_checkpoint(tmp_path))
    again.run()
    assert "step 24: the loss is " in caplog.text and "what was drawn for step 24." in caplog.text
    spikes = [record for record in logged(tmp_path) if record["kind"] == "spike"]
    assert [(record["step"], record["loss"] > 100 * record["usual"]) for record in spikes] == [(25, True)]


def test_the_budget_counts_over_resumptions_and_ends_the_run_once_it_is_spent(tmp_path: Path) -> None:
    run = trainer(tmp_path, MemoryStream(spoil_step=1), steps=4, safety=SKIP)
    run.run()
    again = trainer(tmp_path, MemoryStream(spoil_step=5), steps=8, safety=SKIP)
    again.resume(find_checkpoint(tmp_path))
    with pytest.raises(
        NonFiniteLossError, match=r"step 5: .*, and 1 such were left out before.* for step 5\."
    ):
        again.run()
