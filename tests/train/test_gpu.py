"""The same runs on a CUDA device: training, resuming, and acting there and on the CPU."""

from pathlib import Path

import pytest
import torch
from tests.train.runs import MemoryStream, trainer

from vla_mot.hub.native import GOLDEN_FILE
from vla_mot.hub.tensors import Weights
from vla_mot.infer.golden import replay_golden
from vla_mot.infer.policy import Policy
from vla_mot.train.checkpoint import find_checkpoint
from vla_mot.train.log import read_log
from vla_mot.train.loop import Trainer

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="torch finds no CUDA device"),
]


def tensors_of(run: Trainer) -> dict[str, torch.Tensor]:
    states = {"model": run.model.state_dict(), "average": run.average.own, "own": run.optimizers.tensors()}
    return {f"{kind}.{name}": tensor for kind, state in states.items() for name, tensor in state.items()}


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_a_resumed_run_on_cuda_equals_an_uninterrupted_one(tmp_path: Path, optimizer: str) -> None:
    whole = trainer(tmp_path / "whole", optimizer=optimizer, device="cuda")
    whole.run()
    first = trainer(tmp_path / "parts", optimizer=optimizer, device="cuda")
    batches = MemoryStream().batches(0, 4)
    first.stream = type("Cut", (), {"batches": lambda self, start, stop, prefetch: batches})()
    first.run()
    second = trainer(tmp_path / "parts", optimizer=optimizer, device="cuda")
    second.resume(find_checkpoint(tmp_path / "parts"))
    assert second.progress.step == 4
    second.run()
    mine, theirs = tensors_of(second), tensors_of(whole)
    assert mine.keys() == theirs.keys()
    for name, tensor in mine.items():
        assert tensor.device.type == "cuda", name
        torch.testing.assert_close(tensor, theirs[name], rtol=1e-3, atol=1e-4, msg=name)


def test_a_run_on_cuda_learns_what_it_learns_on_the_cpu(tmp_path: Path) -> None:
    for device in ("cpu", "cuda"):
        trainer(tmp_path / device, device=device).run()
    losses = {
        device: torch.tensor([record["loss"] for record in read_log(tmp_path / device) if "loss" in record])
        for device in ("cpu", "cuda")
    }
    torch.testing.assert_close(losses["cuda"], losses["cpu"], rtol=1e-2, atol=1e-3)


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_a_policy_trained_on_cuda_acts_alike_everywhere(tmp_path: Path, device: str) -> None:
    folder = trainer(tmp_path, device="cuda").run() / "pretrained_model"
    golden = Weights.open(folder / GOLDEN_FILE).read()
    for deviation in replay_golden(Policy.from_pretrained(folder, device=device), golden):
        assert deviation.actions < 1e-2 and deviation.foresight < 1e-2
