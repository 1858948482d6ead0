import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tests.train.runs import MemoryStream, saved_state, train_config, trainer
from torch import nn

from vla_mot.errors import ConfigError
from vla_mot.hub.tensors import write_tensors
from vla_mot.train.checkpoint import find_checkpoint
from vla_mot.train.config import ParallelConfig
from vla_mot.train.eight_bit import make, packed, unpacked

needs_bitsandbytes = pytest.mark.skipif(find_spec("bitsandbytes") is None, reason="needs vla-mot[8bit]")


def weights(seed: int = 0) -> list[nn.Parameter]:
    """One quantised, one too small to be."""
    generator = torch.Generator().manual_seed(seed)
    return [nn.Parameter(torch.randn(shape, generator=generator)) for shape in ((80, 64), (10,))]


def optimizer(parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
    groups = [
        {"params": parameters[:1], "weight_decay": 0.1},
        {"params": parameters[1:], "weight_decay": 0.0},
    ]
    return make(groups, train_config(lr=1e-2))


def train(parameters: list[nn.Parameter], part: torch.optim.Optimizer, steps: range) -> None:
    for step in steps:
        for weight, gradient in zip(parameters, weights(seed=100 + step), strict=True):
            weight.grad = gradient.detach() + 0.5 * weight.detach()
        part.step()


@needs_bitsandbytes
def test_the_state_is_bytes_and_the_steps_are_nearly_adamw_s() -> None:
    mine, theirs = weights(), weights()
    quantised = optimizer(mine)
    plain = torch.optim.AdamW(
        [{"params": theirs[:1], "weight_decay": 0.1}, {"params": theirs[1:], "weight_decay": 0.0}],
        lr=1e-2,
        betas=train_config().betas,
        eps=train_config().eps,
    )
    train(mine, quantised, range(20))
    train(theirs, plain, range(20))
    assert quantised.state[mine[0]]["state1"].dtype == torch.uint8
    assert quantised.state[mine[1]]["state1"].dtype == torch.float32
    start = weights()
    for ours, exact, first in zip(mine, theirs, start, strict=True):
        moved = (exact - first).norm()
        assert (ours - exact).norm() < 0.1 * moved


@needs_bitsandbytes
def test_saved_and_loaded_it_goes_on_bit_by_bit(tmp_path: Path) -> None:
    whole, cut = weights(), weights()
    train(whole, optimizer(whole), range(6))
    first = optimizer(cut)
    train(cut, first, range(3))
    saved = {f"{i}/{name}": x for i, w in enumerate(cut) for name, x in packed(first.state[w]).items()}
    write_tensors(tmp_path / "optimizer.safetensors", saved)
    loaded = load_file(tmp_path / "optimizer.safetensors")
    second = optimizer(cut)
    for i, weight in enumerate(cut):
        mine = {key.partition("/")[2]: x for key, x in loaded.items() if key.startswith(f"{i}/")}
        second.state[weight] = unpacked(second, mine)
    train(cut, second, range(3, 6))
    for one, two in zip(whole, cut, strict=True):
        assert torch.equal(one, two)


@needs_bitsandbytes
def test_a_run_resumes_bit_by_bit(tmp_path: Path) -> None:
    whole = trainer(tmp_path / "whole", optimizer="adamw8bit")
    whole.run()
    first = trainer(tmp_path / "parts", optimizer="adamw8bit")
    batches = MemoryStream().batches(0, 4)
    first.stream.batches = lambda start, stop, prefetch: batches
    first.run()
    second = trainer(tmp_path / "parts", optimizer="adamw8bit")
    second.resume(find_checkpoint(tmp_path / "parts"))
    assert second.progress.step == 4
    second.run()
    mine, theirs = (saved_state(find_checkpoint(tmp_path / name)) for name in ("parts", "whole"))
    assert mine.keys() == theirs.keys() and all(torch.equal(mine[name], theirs[name]) for name in mine)
    assert any(tensor.dtype == torch.uint8 for name, tensor in mine.items() if name.startswith("optimizer."))


def test_the_state_of_torch_s_adamw_passes_through() -> None:
    weight = nn.Parameter(torch.ones(3))
    part = torch.optim.AdamW([weight])
    weight.grad = torch.ones(3)
    part.step()
    state = part.state[weight]
    assert packed(state) == state and unpacked(part, packed(state)) == state


def test_without_bitsandbytes_the_message_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    monkeypatch.delitem(sys.modules, "bitsandbytes.optim", raising=False)
    with pytest.raises(ConfigError, match=r"pip install 'vla-mot\[8bit\]'"):
        optimizer(weights())


def test_sharded_weights_are_refused_before_anything_is_made() -> None:
    with pytest.raises(ConfigError, match=r"takes whole weights.*use adamw.*strategy=ddp"):
        train_config(optimizer="adamw8bit", parallel=ParallelConfig("fsdp"))
