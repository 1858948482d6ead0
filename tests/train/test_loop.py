"""A run end to end: what it leaves behind, and that stopping it anywhere loses nothing."""

import math
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tests.full_disk import full_disk
from tests.infer.tiny_policy import tiny_policy
from tests.model.tiny import tiny_batch
from tests.train.runs import MemoryStream, logged, parted, saved_state, train_config, trainer

from vla_mot.batch import Batch
from vla_mot.errors import CheckpointError, NonFiniteLossError
from vla_mot.infer.golden import record_golden
from vla_mot.infer.policy import Policy
from vla_mot.train.checkpoint import Progress, find_checkpoint
from vla_mot.train.config import LogConfig, ParallelConfig
from vla_mot.train.log import read_log
from vla_mot.train.loop import Trainer


def state_of(run: Trainer) -> dict[str, torch.Tensor]:
    parts = {f"model.{name}": tensor for name, tensor in run.model.state_dict().items()}
    parts |= {f"average.{name}": tensor for name, tensor in run.average.own.items()}
    return parts | {f"optimizer.{name}": value for name, value in run.optimizers.tensors().items()}


def assert_bitwise_equal(mine: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor]) -> None:
    assert mine.keys() == theirs.keys()
    different = [name for name in mine if not torch.equal(mine[name], theirs[name])]
    assert not different, different


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_resumed_run_equals_uninterrupted_run_bitwise(tmp_path: Path, optimizer: str) -> None:
    whole = trainer(tmp_path / "whole", optimizer=optimizer)
    whole.run()
    second = parted(tmp_path / "parts", optimizer=optimizer)
    assert_bitwise_equal(state_of(second), state_of(whole))
    assert logged(tmp_path / "parts") == logged(tmp_path / "whole")


@pytest.mark.slow
def test_killed_process_resumes_bitwise(tmp_path: Path) -> None:
    """A real process, killed with SIGKILL after its second checkpoint, at a moment of the machine's choosing."""
    script = (
        "import sys; from pathlib import Path; from tests.train.runs import trainer\n"
        "trainer(Path(sys.argv[1]), steps=4000, save_every=2).run()"
    )
    run = tmp_path / "killed"
    process = subprocess.Popen([sys.executable, "-c", script, str(run)], cwd=Path(__file__).parents[2])
    deadline = time.monotonic() + 120
    while not (run / "checkpoints" / "000004").is_dir() and time.monotonic() < deadline:
        assert process.poll() is None, "the run ended by itself"
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    resumed = trainer(run, steps=4000)
    resumed.resume(find_checkpoint(run))
    reached = resumed.progress.step
    assert reached >= 4
    resumed.stream = _until(reached + 3)
    resumed.run()
    whole = trainer(tmp_path / "whole", steps=4000)
    whole.stream = _until(reached + 3)
    whole.run()
    assert_bitwise_equal(state_of(resumed), state_of(whole))


def _until(last: int) -> MemoryStream:
    class Ending(MemoryStream):
        def batches(self, start=0, stop=None, prefetch=2):
            return super().batches(start, last)

    return Ending()


def test_saved_policy_holds_the_averaged_weights(tmp_path: Path) -> None:
    run = trainer(tmp_path)
    folder = run.run()
    policy = Policy.from_pretrained(folder / "pretrained_model")
    assert_bitwise_equal(policy.model.state_dict(), run.average.state(run.model))
    saved = saved_state(folder)
    assert_bitwise_equal(saved, state_of(run))
    raw = {n.removeprefix("model."): tensor for n, tensor in saved.items() if n.startswith("model.")}
    moved = [name for name, average in run.average.own.items() if not torch.equal(raw[name], average)]
    assert "action.out_proj.weight" in moved  # averaging is on, so the two differ
    assert (tmp_path / "checkpoints" / "last").resolve() == folder.resolve()
    assert sorted(p.name for p in (tmp_path / "checkpoints").iterdir()) == ["000004", "000006", "last"]


def test_training_improves_and_is_logged(tmp_path: Path) -> None:
    run = trainer(tmp_path, steps=60, lr=1e-2, save_every=60, val_every=30, ema_decay=0.0)
    run.run()
    log = read_log(tmp_path)
    train = [record for record in log if record["kind"] == "train"]
    validation = [record for record in log if record["kind"] == "validation"]
    assert [record["step"] for record in train] == list(range(1, 61))
    assert [record["step"] for record in validation] == [30, 60]
    start = sum(record["loss"] for record in train[:5])
    assert sum(record["loss"] for record in train[-5:]) < 0.9 * start
    assert list((tmp_path / "tensorboard").iterdir())


def test_validation_changes_nothing_and_repeats(tmp_path: Path) -> None:
    run = trainer(tmp_path)
    run.run()
    before = {name: tensor.clone() for name, tensor in state_of(run).items()}
    assert run.validate() == run.validate()
    assert_bitwise_equal(state_of(run), before)


def test_nan_stops_the_run_names_the_batch_and_keeps_the_last_checkpoint(tmp_path: Path) -> None:
    run = trainer(tmp_path, MemoryStream(spoil_step=3))
    message = r"step 3: .*loss.* what was drawn for step 3\..*init_from=.*checkpoints/000002 .* train.lr below 0.003"
    with pytest.raises(NonFiniteLossError, match=message):
        run.run()
    kept = find_checkpoint(tmp_path)
    assert kept.name == "000002"
    again = trainer(tmp_path)
    again.resume(kept)
    assert all(bool(tensor.isfinite().all()) for tensor in state_of(again).values())


class Dazzled(MemoryStream):
    """What one step is to foresee is not finite."""

    def batches(self, start: int = 0, stop: int | None = None, prefetch: int = 2) -> Iterator[Batch]:
        for step, batch in enumerate(super().batches(start, stop, prefetch), start=start):
            views = batch.future_mask.shape
            nowhere = torch.full((*views, 16, 4, 4), float("nan"))
            yield replace(batch, future_latents=nowhere) if step == 3 else batch


def test_foresight_that_is_not_weighed_stops_nothing(tmp_path: Path) -> None:
    trainer(tmp_path, Dazzled(), foresight_weight=0.0, steps=5, save_every=1).run()
    trained = [record for record in logged(tmp_path) if record["kind"] == "train"]
    assert not math.isfinite(float(trained[3]["foresight_loss"]))
    assert all(record["loss"] == record["action_loss"] for record in trained)
    assert [record["step"] for record in trained] == [1, 2, 3, 4, 5]
    with pytest.raises(NonFiniteLossError, match="foresight_loss"):
        trainer(tmp_path / "weighed", Dazzled(), steps=5).run()


def test_who_foresees_nothing_has_no_foresight_loss(tmp_path: Path) -> None:
    policy = tiny_policy(generation=None, foresight=None)
    config = train_config(steps=2, val_every=1, save_every=2)
    run = Trainer(policy.model, policy.spec, MemoryStream(), [tiny_batch(1000)], config, tmp_path)
    run.run()
    records = logged(tmp_path)
    assert {record["kind"] for record in records} == {"train", "validation"}
    assert not [key for record in records for key in record if "foresight_loss" in key]
    assert run.progress.best == min(r["action_loss"] for r in records if r["kind"] == "validation")


@pytest.mark.parametrize("lr", [1e8, 1e30])
@pytest.mark.parametrize("ema_decay", [0.0, 0.9])
def test_weights_that_blew_up_are_never_saved(tmp_path: Path, lr: float, ema_decay: float) -> None:
    """The loss before the step is fine; the weights after it are not, though they may be finite."""
    run = trainer(tmp_path, lr=lr, warmup_steps=0, ema_decay=ema_decay, save_every=1, keep_checkpoints=1)
    with pytest.raises(
        NonFiniteLossError, match=r"step 0: .*weights after it are useless.*checkpoints/000000"
    ):
        run.run()
    (kept,) = (path for path in (tmp_path / "checkpoints").iterdir() if path.name != "last")
    assert kept == find_checkpoint(tmp_path) == (tmp_path / "checkpoints" / "last").resolve()
    answers = record_golden(Policy.from_pretrained(kept / "pretrained_model"))
    assert all(bool(answer.isfinite().all()) for answer in answers.values())


@pytest.mark.parametrize("kind", ["weights", "averaged weights"])
def test_a_single_weight_that_is_not_finite_is_never_saved(tmp_path: Path, kind: str) -> None:
    run = trainer(tmp_path)
    run.run()
    state = run.average.own if kind == "averaged weights" else run.model.state_dict()
    state["action.out_proj.bias"].view(-1)[0] = float("inf")
    with pytest.raises(NonFiniteLossError, match=rf"1 of the {kind} \(action.out_proj.bias, …\)"):
        run.save()


def test_a_run_does_not_begin_with_weights_that_are_not_finite(tmp_path: Path) -> None:
    run = trainer(tmp_path)
    run.model.action.out_proj.bias.data[0] = float("nan")
    with pytest.raises(CheckpointError, match=r"not finite \(action.out_proj.bias"):
        run.run()
    assert not (tmp_path / "checkpoints").exists()


def test_the_newest_checkpoint_is_found_by_number(tmp_path: Path) -> None:
    for name in ("999999", "1000000", "000002"):
        (tmp_path / "checkpoints" / name).mkdir(parents=True)
    assert find_checkpoint(tmp_path).name == "1000000"


def test_resume_refuses_what_does_not_fit(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no checkpoint to resume from"):
        find_checkpoint(tmp_path / "nothing")
    folder = trainer(tmp_path).run()
    (state,) = (folder / "training_state").glob("*.safetensors")
    state.write_bytes(state.read_bytes()[:-100])
    with pytest.raises(
        CheckpointError, match=r"not as it was written: shard.*bytes instead of.*remove .*000006"
    ):
        trainer(tmp_path).resume(folder)


def test_resume_refuses_the_state_of_other_weights(tmp_path: Path) -> None:
    run = trainer(tmp_path)
    run.run()
    state = run.optimizers.tensors()
    partial = {name: value for name, value in state.items() if not name.startswith("action.out_proj.weight/")}
    with pytest.raises(CheckpointError, match=r"other weights .*action.out_proj.weight"):
        run.optimizers.load(partial)


def test_unfinished_checkpoint_is_never_taken_for_a_whole_one(tmp_path: Path) -> None:
    trainer(tmp_path).run()
    (tmp_path / "checkpoints" / ".unfinished-000009" / "training_state").mkdir(parents=True)
    assert find_checkpoint(tmp_path).name == "000006"


def test_the_batches_are_closed_when_a_run_fails(tmp_path: Path) -> None:
    """At once, while somebody still holds the error, and with it what the run was doing."""

    class Watched(MemoryStream):
        closed = False

        def batches(self, start=0, stop=None, prefetch=2):
            try:
                yield from super().batches(start, stop)
            finally:
                self.closed = True

    stream = Watched(spoil_step=1)
    with pytest.raises(NonFiniteLossError) as held:
        trainer(tmp_path, stream).run()
    assert stream.closed, held


def test_a_checkpoint_that_is_lost_beside_another_error_is_told(tmp_path: Path, caplog) -> None:
    run = trainer(tmp_path, MemoryStream(spoil_step=1), save_async=True, log=LogConfig(writers=()))
    with full_disk(4000), pytest.raises(NonFiniteLossError, match="step 1: "):
        run.run()
    assert "File too large" in caplog.text
    assert "000000 cannot be written; those before it are whole" in caplog.text


def test_gradient_checkpointing_trains_the_same(tmp_path: Path) -> None:
    plain, thrifty = (
        trainer(tmp_path / "a"),
        trainer(tmp_path / "b", parallel=ParallelConfig(recompute="full")),
    )
    plain.run()
    thrifty.run()
    assert thrifty.model.stack.recompute == "full"
    assert_bitwise_equal(state_of(plain), state_of(thrifty))


def test_a_full_disk_keeps_the_last_checkpoint_and_nothing_half_written(tmp_path: Path) -> None:
    run = trainer(tmp_path)
    good = run.save()
    run.progress = Progress(3, 1.0)
    with full_disk(4000), pytest.raises(OSError, match=r"File too large") as error:
        run.save()
    assert "000003 cannot be written; those before it are whole" in error.value.__notes__[0]
    assert find_checkpoint(tmp_path) == good
    names = {path.name for path in (tmp_path / "checkpoints").iterdir()}
    assert names == {good.name, "last"}
    trainer(tmp_path).resume(good)
