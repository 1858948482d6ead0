"""What a run measures of its own steps, against sums made by hand."""

import subprocess
import sys
from dataclasses import replace

import pytest
import torch
from tests.model.tiny import tiny_batch, tiny_model, tiny_noise
from tests.train.runs import train_config

from vla_mot.batch import Batch
from vla_mot.model.model import Losses, VlaMotModel
from vla_mot.model.objective import objective
from vla_mot.train import pace
from vla_mot.train.config import ExpertsConfig, ExpertTraining
from vla_mot.train.experts import freeze
from vla_mot.train.meters import Meters, Work, gradient_norms, learning_rates
from vla_mot.train.optimizer import Optimizers
from vla_mot.train.origins import MOST_DATASETS, Origin, labels

ORIGINS = (
    Origin("lab/a", "lab", "conveyor"),
    Origin("lab/b", "lab", "conveyor"),
    Origin("people", "people", "human"),
)


def batch_of(places: list[int]) -> Batch:
    origin = torch.tensor([[place, 0, row] for row, place in enumerate(places)])
    return replace(tiny_batch()[slice(0, len(places))], origin=origin)


def losses(rows: list[list[float]]) -> Losses:
    """Action sum and count, foresight sum and count of every sample; a graph hangs on them, as in training."""
    return Losses(*torch.tensor(rows, dtype=torch.float32, requires_grad=True).unbind(1))


@pytest.fixture
def clock(monkeypatch) -> list[float]:
    """The time in seconds, to be set."""
    now = [100.0]
    monkeypatch.setattr(pace.time, "perf_counter", lambda: now[0])
    return now


FIRST = (batch_of([0, 2, 0, 1]), losses([[8, 4, 1, 2], [0, 0, 6, 2], [4, 2, 2, 2], [9, 3, 0, 0]]))
SECOND = (batch_of([1, 1]), losses([[1, 1, 3, 3], [2, 1, 0, 0]]))
EXPECTED = {
    "dataset/lab/a/action_loss": 12 / 6,
    "dataset/lab/a/foresight_loss": 3 / 4,
    "dataset/lab/b/action_loss": 12 / 5,
    "dataset/lab/b/foresight_loss": 3 / 3,
    "dataset/people/foresight_loss": 6 / 2,
    "embodiment/conveyor/action_loss": 24 / 11,
    "embodiment/conveyor/foresight_loss": 6 / 7,
    "embodiment/human/foresight_loss": 6 / 2,
}


def loss_part(numbers: dict[str, float]) -> dict[str, float]:
    return {name: value for name, value in numbers.items() if name.endswith("_loss")}


def test_losses_are_means_over_the_window_by_dataset_and_robot():
    meters = Meters(ORIGINS, "cpu")
    meters.add(*FIRST)
    meters.add(*SECOND)
    assert loss_part(meters.numbers(meters.take())) == pytest.approx(EXPECTED)
    assert loss_part(meters.numbers(meters.take())) == {}, "a new window begins empty"


def test_two_ranks_say_what_one_would(clock):
    meters = [Meters(ORIGINS, "cpu", rank, ranks=2) for rank in (0, 1)]
    for one, seen in zip(meters, (FIRST, SECOND), strict=True):
        one.add(*seen)
    clock[0] += 2
    numbers = meters[0].numbers(sum(one.take() for one in meters))
    assert loss_part(numbers) == pytest.approx(EXPECTED)
    assert numbers["samples_per_second"] == pytest.approx(6 / 2)
    assert numbers["machine/memory_gib"] == pytest.approx(pace.peak_memory("cpu"), rel=0.2)


def test_samples_without_origin_count_but_are_not_told_apart(clock):
    meters = Meters((), "cpu")
    meters.add(tiny_batch(), FIRST[1])
    clock[0] += 4
    numbers = meters.numbers(meters.take())
    assert numbers["samples_per_second"] == 1
    assert loss_part(numbers) == {}


def test_many_datasets_are_told_by_their_groups():
    many = [Origin(f"d{n}", f"g{n % 2}", "conveyor") for n in range(MOST_DATASETS + 1)]
    assert set(labels(many)) == {"group/g0", "group/g1", "embodiment/conveyor"}
    assert set(labels(many[:-1])) == {f"dataset/d{n}" for n in range(MOST_DATASETS)} | {"embodiment/conveyor"}
    assert labels(many)["group/g1"] == tuple(range(1, MOST_DATASETS, 2))


def test_the_clock_knows_waiting_from_work_and_leaves_validation_out(clock):
    meters = Meters((), "cpu", work=Work(flops=3e9, ceiling=1e10))
    clock[0] += 500  # until the first batch is asked for, nothing is training

    def slow():
        for _ in range(2):
            clock[0] += 1  # a second until the batch is there
            yield tiny_batch()

    for batch in meters.watch(slow()):
        clock[0] += 3  # three seconds of work
        meters.add(batch, FIRST[1])
    with meters.aside():
        clock[0] += 1000
    numbers = meters.numbers(meters.take())
    assert numbers["samples_per_second"] == pytest.approx(8 / 8)
    assert numbers["machine/data_wait"] == pytest.approx(2 / 8)
    assert numbers["machine/tflops"] == pytest.approx(3e-3)
    assert numbers["machine/utilisation"] == pytest.approx(0.3)
    clock[0] += 5
    assert meters.numbers(meters.take())["machine/data_wait"] == 0


def test_the_ceiling_is_measured_and_draws_from_nobody_elses_numbers():
    state = torch.get_rng_state()
    assert pace.matmul_ceiling("cpu", "fp32") > 1e8
    assert torch.equal(torch.get_rng_state(), state)


def with_gradients(**experts: ExpertTraining) -> VlaMotModel:
    model = tiny_model()
    freeze(model, ExpertsConfig(**experts))
    batch = tiny_batch()
    objective(model.losses(batch, *tiny_noise(batch)), 0.1).total.backward()
    return model


def test_gradient_norms_by_expert_add_up_and_know_nothing_of_clipping():
    model = with_gradients()
    by_hand = sum(p.grad.square().sum() for p in model.action.parameters()) + sum(
        p.grad.square().sum()
        for name, p in model.stack.named_parameters()
        if ".experts.action." in name or name.startswith("norms.action")
    )
    weights = [p for p in model.parameters() if p.grad is not None]
    total = float(torch.nn.utils.clip_grad_norm_(weights, 1e9))
    found = gradient_norms(model, total, 1e9)
    assert found.keys() == {
        f"grad_norm/{name}" for name in ("vision", "understanding", "generation", "action")
    }
    assert found["grad_norm/action"] == pytest.approx(float(by_hand) ** 0.5)
    assert sum(norm**2 for norm in found.values()) == pytest.approx(total**2)
    assert float(torch.nn.utils.clip_grad_norm_(weights, total / 7)) == pytest.approx(total)
    assert gradient_norms(model, total, total / 7) == pytest.approx(found, rel=1e-4)


def test_an_expert_that_does_not_train_has_no_norm_and_no_rate():
    model = with_gradients(vision=ExpertTraining(frozen=True), action=ExpertTraining(lr_scale=0.5))
    assert "grad_norm/vision" not in gradient_norms(model, 1.0, 1.0)
    config = train_config(experts=ExpertsConfig(action=ExpertTraining(lr_scale=0.5)), weight_decay=0.0)
    optimizers = Optimizers(model, config)
    optimizers.step(2e-3)
    assert learning_rates(model, optimizers.param_groups) == pytest.approx(
        {"lr/understanding": 2e-3, "lr/generation": 2e-3, "lr/action": 1e-3}
    )


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere the system tells it otherwise")
def test_peak_memory_is_not_that_of_the_process_that_started_this_one() -> None:
    ballast = b"x" * 2**31
    code = "from vla_mot.train.pace import peak_memory; print(peak_memory('cpu'))"
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert 0.05 < float(told) < 1.5 < len(ballast) / 2**30
