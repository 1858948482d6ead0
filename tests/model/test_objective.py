"""The global loss: two ranks equal one, whatever is masked; noise is keyed by the global sample."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from tests.model.tiny import tiny_batch, tiny_model

from vla_mot.flow.matching import NoiseLevelConfig
from vla_mot.model.model import Losses
from vla_mot.model.objective import draw_noise, objective

TWO_RANKS = """
import sys, torch, torch.distributed as dist
from tests.model.tiny import tiny_batch, tiny_model
from vla_mot.flow.matching import NoiseLevelConfig
from vla_mot.model.objective import draw_noise, objective
rank, path = int(sys.argv[1]), sys.argv[2]
dist.init_process_group("gloo", init_method=f"file://{path}/meet", rank=rank, world_size=2)
model, batch = tiny_model(), tiny_batch()[slice(2 * rank, 2 * rank + 2)]
goal = objective(model.losses(batch, *draw_noise(batch, 2, 0, 5, NoiseLevelConfig())), 0.3)
goal.total.backward()
gradients = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
for gradient in gradients.values():
    dist.all_reduce(gradient)
    gradient /= 2
torch.save((float(goal.action), float(goal.foresight), gradients), f"{path}/rank{rank}.pt")
"""


@pytest.mark.multiprocess
def test_two_ranks_equal_one(tmp_path: Path) -> None:
    """Samples without actions, absent cameras and short episodes fall unevenly on the two ranks."""
    root = Path(__file__).parents[2]
    ranks = [
        subprocess.Popen([sys.executable, "-c", TWO_RANKS, str(rank), str(tmp_path)], cwd=root)
        for rank in range(2)
    ]
    assert [rank.wait(timeout=120) for rank in ranks] == [0, 0]
    model, batch = tiny_model(), tiny_batch()
    goal = objective(model.losses(batch, *draw_noise(batch, 2, 0, 5, NoiseLevelConfig())), 0.3)
    goal.total.backward()
    for rank in range(2):
        action, foresight, gradients = torch.load(tmp_path / f"rank{rank}.pt")
        assert action == pytest.approx(float(goal.action), rel=1e-5)
        assert foresight == pytest.approx(float(goal.foresight), rel=1e-5)
        for name, parameter in model.named_parameters():
            if parameter.grad is None:
                assert name not in gradients
            else:
                error = (gradients[name] - parameter.grad).norm()
                assert error <= 1e-5 * parameter.grad.norm() + 1e-7, name


def test_means_are_over_what_was_counted() -> None:
    losses = Losses(
        action_sum=torch.tensor([6.0, 0.0]),
        action_count=torch.tensor([3.0, 0.0]),
        foresight_sum=torch.tensor([1.0, 3.0]),
        foresight_count=torch.tensor([2.0, 2.0]),
    )
    goal = objective(losses, foresight_weight=0.5)
    assert (float(goal.action), float(goal.foresight), float(goal.total)) == (2.0, 1.0, 2.5)


def test_nothing_labelled_is_zero_and_not_nan() -> None:
    zero = torch.zeros(2)
    goal = objective(Losses(zero, zero, zero, zero), foresight_weight=1.0)
    assert float(goal.total) == 0.0


def test_noise_follows_the_sample_not_its_place() -> None:
    batch, config = tiny_batch(), NoiseLevelConfig()
    noise, level = draw_noise(batch, 3, seed=1, step=7, config=config)
    turned = torch.tensor([2, 0, 3, 1])
    noise_turned, level_turned = draw_noise(batch[turned], 3, seed=1, step=7, config=config)
    assert torch.equal(noise_turned, noise[turned])
    assert torch.equal(level_turned, level[turned])
    assert not torch.equal(draw_noise(batch, 3, seed=1, step=8, config=config)[0], noise)
    assert not torch.equal(draw_noise(batch, 3, seed=2, step=7, config=config)[0], noise)
    assert noise.shape == (4, 3, *batch.actions.shape[1:])
    assert noise.dtype == level.dtype == torch.float32
