import pytest
import torch
from tests.model.tiny import tiny_model
from tests.train.runs import train_config
from torch import nn

from vla_mot.errors import CheckpointError, ConfigError
from vla_mot.train.average import AveragedWeights
from vla_mot.train.config import ExpertsConfig, ExpertTraining, TrainConfig
from vla_mot.train.experts import freeze
from vla_mot.train.log import RunLog, read_log
from vla_mot.train.optimizer import Optimizers, learning_rate


def test_schedule_warms_up_and_ends_at_the_final_rate() -> None:
    config = TrainConfig(steps=100, lr=1.0, lr_final=0.1, warmup_steps=10, schedule="cosine", batch_size=1)
    assert learning_rate(0, config) == pytest.approx(0.1)
    assert learning_rate(9, config) == learning_rate(10, config) == pytest.approx(1.0)
    assert learning_rate(55, config) == pytest.approx(0.55)
    assert learning_rate(100, config) == pytest.approx(0.1)
    rates = [learning_rate(step, config) for step in range(10, 101)]
    assert rates == sorted(rates, reverse=True)


def test_constant_schedule_stays() -> None:
    config = TrainConfig(steps=100, lr=0.5, schedule="constant")
    assert {learning_rate(step, config) for step in (0, 50, 99)} == {0.5}


def test_average_matches_its_formula_and_follows_buffers() -> None:
    model = nn.Linear(1, 1, bias=False)
    model.weight.data.fill_(0.0)
    average = AveragedWeights(model, decay=0.5)
    expected = 0.0
    for update in range(1, 6):
        model.weight.data.fill_(float(update))
        average.update(model)
        decay = min(0.5, (1 + update) / (10 + update))
        expected = decay * expected + (1 - decay) * update
    assert float(average.own["weight"]) == pytest.approx(expected, rel=1e-6)


def test_what_does_not_train_is_averaged_by_nobody_and_follows_the_model() -> None:
    model = tiny_model()
    freeze(model, ExpertsConfig(generation=ExpertTraining(frozen=True)))
    average = AveragedWeights(model, decay=0.5)
    assert average.own.keys() == {name for name, weight in model.named_parameters() if weight.requires_grad}
    assert not any(name.startswith(("tokenizer.", "generation.")) for name in average.own)
    model.tokenizer.latent_std.fill_(3.0)
    model.action.out_proj.weight.data.add_(1.0)
    state = average.state(model)
    assert state.keys() == model.state_dict().keys()
    assert bool((state["tokenizer.latent_std"] == 3).all())
    assert not torch.equal(state["action.out_proj.weight"], model.action.out_proj.weight)


def test_average_of_decay_zero_is_the_model() -> None:
    model = tiny_model()
    average = AveragedWeights(model, decay=0.0)
    model.action.out_proj.weight.data.add_(1.0)
    average.update(model)
    assert not average.own
    name = "action.out_proj.weight"
    assert torch.equal(average.state(model)[name], model.action.out_proj.weight)
    with average.inside(model):
        assert float(model.action.out_proj.weight.detach().abs().max()) > 0.9


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_every_trained_weight_is_in_one_group_and_only_matrices_decay(optimizer: str) -> None:
    model = tiny_model()
    groups = Optimizers(model, train_config(weight_decay=0.3, optimizer=optimizer)).param_groups
    for group in groups:
        expected = 0.3 if group["params"][0].dim() > 1 else 0.0
        assert group["weight_decay"] == expected
        assert len({p.dim() > 1 for p in group["params"]}) == 1
    members = [p for group in groups for p in group["params"]]
    trained = [p for p in model.parameters() if p.requires_grad]
    assert len(members) == len(trained) and set(members) == set(trained)
    assert any(not p.requires_grad for p in model.parameters())


def test_muon_moves_linear_weights_by_orthogonal_steps_and_leaves_the_rest_to_adamw() -> None:
    model = tiny_model()
    optimizers = Optimizers(model, train_config(optimizer="muon", weight_decay=0.0))
    weight, embedding = model.action.time_mlp_out.weight, model.understanding.embed_tokens.weight
    before, embedded = weight.detach().clone(), embedding.detach().clone()
    generator = torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.grad = torch.randn(parameter.shape, generator=generator)
    optimizers.step(1e-2)
    singular = torch.linalg.svdvals(before - weight.detach())
    assert singular.max() / singular.min() < 2.5  # Newton-Schulz brings all of them near one
    moved = (embedded - embedding.detach()).abs()
    torch.testing.assert_close(moved, torch.full_like(moved, 1e-2), rtol=1e-3, atol=0)  # AdamW's first step


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_the_loaded_state_lies_where_the_weights_are(optimizer: str) -> None:
    model = tiny_model()
    trained = Optimizers(model, train_config(optimizer=optimizer))
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter) if parameter.requires_grad else None
    trained.step(1e-3)
    state = trained.tensors()
    elsewhere = Optimizers(model.to("meta"), train_config(optimizer=optimizer))
    elsewhere.load(state)
    assert elsewhere.tensors().keys() == state.keys()
    assert {tensor.device.type for tensor in elsewhere.tensors().values()} == {"meta"}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"steps": 0}, "train.steps must be at least 1"),
        ({"schedule": "cosin"}, r"unknown train.schedule 'cosin'. Did you mean 'cosine'"),
        ({"optimizer": "muom"}, r"unknown train.optimizer 'muom'. Did you mean 'muon'"),
        ({"ema_decay": 1.0}, r"ema_decay must lie in \[0, 1\)"),
    ],
)
def test_bad_settings_are_named(change: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        train_config(**change)


def test_log_forgets_what_lies_behind_the_checkpoint(tmp_path) -> None:
    log = RunLog(tmp_path)
    for step in (1, 2, 3):
        log.write("train", step, {"loss": step / 2})
    log.close()
    (tmp_path / "log.jsonl").open("a").write('{"step": 4, "kind": "tr')  # cut short by a crash
    RunLog(tmp_path, from_step=2).close()
    assert [record["step"] for record in read_log(tmp_path)] == [1, 2]


def test_a_kill_while_the_log_is_rewritten_loses_no_record(tmp_path, monkeypatch) -> None:
    log = RunLog(tmp_path)
    log.write("train", 1, {"loss": 0.5})
    log.close()

    def killed(*paths):
        raise KeyboardInterrupt

    monkeypatch.setattr("os.replace", killed)
    with pytest.raises(KeyboardInterrupt):
        RunLog(tmp_path, from_step=1)
    assert [record["step"] for record in read_log(tmp_path)] == [1]


@pytest.mark.parametrize("damage", [b'{"step": 2, "ki', b"7", b'{"loss": 1}', b"\xff\xfe"])
def test_a_damaged_line_of_the_log_is_named(tmp_path, damage: bytes) -> None:
    whole = b'{"step": 1, "kind": "train"}\n'
    (tmp_path / "log.jsonl").write_bytes(whole + damage + b"\n" + whole)
    with pytest.raises(CheckpointError, match=r"log.jsonl, line 2, is damaged"):
        read_log(tmp_path)
    (tmp_path / "log.jsonl").write_bytes(whole + damage)
    assert len(read_log(tmp_path)) == 1


def test_log_writes_no_invalid_json(tmp_path) -> None:
    log = RunLog(tmp_path)
    log.write("train", 1, {"loss": float("nan"), "other": float("inf")})
    log.close()
    assert read_log(tmp_path) == [{"step": 1, "kind": "train", "loss": "nan", "other": "inf"}]
