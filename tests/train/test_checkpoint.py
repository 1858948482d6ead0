"""Which checkpoints stay, what is written beside the next steps, and what an adapted run leaves behind."""

import json
from pathlib import Path

import pytest
import torch
from tests.full_disk import full_disk
from tests.infer.tiny_policy import tiny_policy
from tests.train.runs import MemoryStream, logged, parted, saved_state, train_config, trainer
from tests.train.test_loop import assert_bitwise_equal, state_of

from vla_mot.errors import CheckpointError, ConfigError
from vla_mot.hub.manifest import write_manifest
from vla_mot.infer.policy import Policy
from vla_mot.train.checkpoint import find_checkpoint
from vla_mot.train.config import AdapterConfig, ExpertsConfig, ExpertTraining, ParallelConfig
from vla_mot.train.log import read_log
from vla_mot.train.loop import Trainer
from vla_mot.train.state import write_state
from vla_mot.train.world import World


def numbers(run: Path) -> list[str]:
    return sorted(path.name for path in (run / "checkpoints").iterdir())


def test_multiples_stay_beside_the_newest(tmp_path: Path) -> None:
    trainer(tmp_path, steps=10, save_every=1, keep_every=4, keep_checkpoints=1).run()
    assert numbers(tmp_path) == ["000004", "000008", "000010", "last"]


def test_the_best_is_saved_when_it_is_met_and_stays(tmp_path: Path) -> None:
    """At a rate that ruins everything after a few steps, the best lies behind the newest ones."""
    run = trainer(
        tmp_path, steps=12, lr=0.3, warmup_steps=12, val_every=1, save_every=12, keep_best=True, ema_decay=0.0
    )
    run.run()
    scores = {
        r["step"]: r["action_loss"] + 0.01 * r["foresight_loss"]
        for r in read_log(tmp_path)
        if r["kind"] == "validation"
    }
    best = min(scores, key=scores.__getitem__)
    assert best < 11
    assert (tmp_path / "checkpoints" / "best").resolve().name == f"{best:06d}"
    assert find_checkpoint(tmp_path).name == "000012"
    again = trainer(tmp_path, steps=12, ema_decay=0.0)
    again.resume(find_checkpoint(tmp_path))
    assert again.progress.best == scores[best]


def test_a_loss_that_is_no_number_is_never_the_best(tmp_path: Path) -> None:
    run = trainer(tmp_path)
    nan, good = {"action_loss": float("nan")}, {"action_loss": 3.0}
    assert not run._improved(nan)
    assert run._improved(good)
    assert not run._improved(nan)
    assert run.progress.best == 3.0


def test_nothing_can_be_the_best_where_nothing_validates(tmp_path: Path) -> None:
    policy = tiny_policy()
    with pytest.raises(ConfigError, match=r"train\.keep_best=true .* data\.validation_fraction"):
        Trainer(policy.model, policy.spec, MemoryStream(), [], train_config(keep_best=True), tmp_path)
    Trainer(policy.model, policy.spec, MemoryStream(), [], train_config(), tmp_path)


def test_what_a_kill_left_of_any_step_is_gone_after_the_next_checkpoint(tmp_path: Path) -> None:
    left = tmp_path / "checkpoints" / ".unfinished-000777" / "training_state"
    left.mkdir(parents=True)
    (left / "shard.safetensors").write_bytes(b"cut sh")
    trainer(tmp_path).save()
    assert numbers(tmp_path) == ["000000", "last"]


def test_a_step_that_is_written_again_is_whole_at_any_moment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = trainer(tmp_path)
    good = run.save()

    def replace(source: Path, target: Path) -> None:
        raise PermissionError(f"{source} may not be renamed")

    with monkeypatch.context() as patched:
        patched.setattr("vla_mot.train.checkpoint.os.replace", replace)
        with pytest.raises(PermissionError, match="may not be renamed"):
            run.save()
    assert find_checkpoint(tmp_path) == good
    trainer(tmp_path).resume(good)
    assert run.save() == good
    assert numbers(tmp_path) == ["000000", "last"]


def test_a_run_that_goes_on_from_its_start_does_not_save_it_again(tmp_path: Path) -> None:
    first = trainer(tmp_path).save()
    written = first.stat().st_ino
    again = trainer(tmp_path, keep_checkpoints=9)
    again.resume(first)
    again.run()
    assert first.stat().st_ino == written


def test_written_beside_the_next_steps_it_is_the_same(tmp_path: Path) -> None:
    one, other = trainer(tmp_path / "one"), trainer(tmp_path / "other", save_async=True)
    for run in (one, other):
        run.run()
    for name in ("000004", "000006"):
        mine, theirs = (tmp_path / run / "checkpoints" / name for run in ("one", "other"))
        assert_bitwise_equal(saved_state(mine), saved_state(theirs))
        file = Path("pretrained_model", "model.safetensors")
        assert (mine / file).read_bytes() == (theirs / file).read_bytes()
    assert numbers(tmp_path / "one") == numbers(tmp_path / "other")


def test_what_a_thread_could_not_write_is_raised(tmp_path: Path) -> None:
    run = trainer(tmp_path, save_async=True)
    good = run.save()
    run.checkpoints.finish()
    with full_disk(4000), pytest.raises(OSError, match="File too large"):
        run.run()
    assert find_checkpoint(tmp_path) == good


ADAPTED = ExpertsConfig(
    vision=ExpertTraining(frozen=True),
    understanding=ExpertTraining(adapter=AdapterConfig("lora", rank=4)),
    generation=ExpertTraining(adapter=AdapterConfig("dora", rank=2)),
    action=ExpertTraining(lr_scale=2.0),
)


def test_an_adapted_run_resumes_bitwise_and_saves_a_plain_policy(tmp_path: Path) -> None:
    whole = trainer(tmp_path / "whole", experts=ADAPTED)
    before = {name: tensor.clone() for name, tensor in whole.model.state_dict().items()}
    whole.run()
    second = parted(tmp_path / "parts", experts=ADAPTED)
    assert_bitwise_equal(state_of(second), state_of(whole))
    assert logged(tmp_path / "parts") == logged(tmp_path / "whole")
    saved = saved_state(find_checkpoint(tmp_path / "whole"))
    for name, tensor in before.items():
        if ".base_layer." in name or name.startswith("understanding.visual."):
            assert torch.equal(saved[f"model.{name}"], tensor), name
    policy = Policy.from_pretrained(find_checkpoint(tmp_path / "whole") / "pretrained_model")
    assert not [name for name in policy.model.state_dict() if "lora" in name or "base_layer" in name]
    moved = "stack.layers.0.experts.understanding.self_attn.q_proj.weight"
    adapted = before[moved.replace(".weight", ".base_layer.weight")]
    assert not torch.equal(policy.model.state_dict()[moved], adapted)


def test_a_checkpoint_with_averages_of_what_does_not_train_resumes_the_same(tmp_path: Path) -> None:
    """As they were written once."""
    run = trainer(tmp_path, experts=ADAPTED)
    folder = run.run()
    rewrite(folder, state_of(run) | {f"average.{n}": t for n, t in run.average.state(run.model).items()})
    again = trainer(tmp_path, experts=ADAPTED)
    again.resume(folder)
    assert_bitwise_equal(state_of(again), state_of(run))


def test_a_checkpoint_that_lacks_an_average_or_has_one_of_nothing_is_refused(tmp_path: Path) -> None:
    run = trainer(tmp_path)
    folder, whole = run.run(), state_of(run)
    lacking = {name: tensor for name, tensor in whole.items() if name != "average.action.out_proj.bias"}
    for odd, named in ((lacking, "out_proj"), (whole | {"average.of nothing": torch.ones(1)}, "of nothing")):
        rewrite(folder, odd)
        with pytest.raises(CheckpointError, match=rf"other weights than this run trains: average\..*{named}"):
            trainer(tmp_path).resume(folder)


def rewrite(checkpoint: Path, tensors: dict[str, torch.Tensor]) -> None:
    """Another state in a checkpoint."""
    state = checkpoint / "training_state"
    for file in state.glob("*.safetensors"):
        file.unlink()
    write_state(state, {name: tensor.detach().clone() for name, tensor in tensors.items()}, World())
    write_manifest(state)


def test_passes_make_the_same_step(tmp_path: Path) -> None:
    """Gradients are sums of another order, so equal but for rounding."""
    one = trainer(tmp_path / "one")
    four = trainer(tmp_path / "four", parallel=ParallelConfig(micro_batch=1))
    for run in (one, four):
        batch = next(run.stream.batches(0, 1))
        found = run.passes.gradient(0, batch)
        assert len(found.losses.action_sum) == 4
    pairs = zip(one.model.parameters(), four.model.parameters(), strict=True)
    for mine, theirs in ((a.grad, b.grad) for a, b in pairs if a.grad is not None):
        assert theirs is not None
        assert (mine - theirs).norm() <= 1e-5 * mine.norm() + 1e-9


def test_each_expert_has_its_own_rate_and_norm_in_the_log(tmp_path: Path) -> None:
    experts = ExpertsConfig(vision=ExpertTraining(frozen=True), action=ExpertTraining(lr_scale=0.5))
    trainer(tmp_path, experts=experts).run()
    record = read_log(tmp_path)[0]
    assert record["lr/action"] == pytest.approx(0.5 * record["lr/understanding"])
    assert "grad_norm/vision" not in record
    squares = sum(value**2 for key, value in record.items() if key.startswith("grad_norm/"))
    assert squares == pytest.approx(record["grad_norm"] ** 2, rel=1e-4)


def test_bf16_rounds_products_and_keeps_weights_gradients_and_optimizer_wide(tmp_path: Path) -> None:
    wide, narrow = trainer(tmp_path / "a"), trainer(tmp_path / "b", parallel=ParallelConfig(precision="bf16"))
    batch = next(wide.stream.batches(0, 1))
    full, rounded = wide.passes.gradient(0, batch), narrow.passes.gradient(0, batch)
    assert rounded.loss != full.loss
    assert rounded.loss == pytest.approx(full.loss, rel=0.02)
    gradients = [p.grad for p in narrow.model.parameters() if p.grad is not None]
    narrow.optimizers.step(1e-3)
    floats = [*gradients, *narrow.model.parameters(), *narrow.optimizers.tensors().values()]
    assert {tensor.dtype for tensor in floats} == {torch.float32}


def test_a_progress_of_a_wrong_kind_is_refused_by_name(tmp_path: Path) -> None:
    folder = trainer(tmp_path).run()
    state = folder / "training_state"
    told = json.loads((state / "progress.json").read_text())
    (state / "progress.json").write_text(json.dumps(told | {"step": "six"}))
    write_manifest(state)
    with pytest.raises(
        CheckpointError, match=r"progress\.json is damaged: .*progress\.step: expected a whole"
    ):
        trainer(tmp_path).resume(folder)
