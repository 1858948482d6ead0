"""A real run in memory: the tiny policy of the infer tests, trained on batches that are drawn by step."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from tests.infer.tiny_policy import tiny_policy
from tests.model.tiny import tiny_batch

from vla_mot.batch import Batch
from vla_mot.train.checkpoint import find_checkpoint
from vla_mot.train.config import TrainConfig
from vla_mot.train.log import read_log
from vla_mot.train.loop import Trainer
from vla_mot.train.pace import MACHINE
from vla_mot.train.world import World


class MemoryStream:
    """Batches that depend on the step alone, as the real stream's do."""

    def __init__(self, spoil_step: int | None = None) -> None:
        self.spoil_step = spoil_step

    def batches(self, start: int = 0, stop: int | None = None, prefetch: int = 2) -> Iterator[Batch]:
        assert stop is not None
        for step in range(start, stop):
            batch = replace(tiny_batch(step), index=torch.arange(4 * step, 4 * step + 4))
            yield _spoiled(batch) if step == self.spoil_step else batch

    def describe(self, batch: Batch) -> str:
        return f"what was drawn for step {int(batch.index[0]) // 4}"

    def composition(self, batch: Batch) -> dict[str, int]:
        return {"memory": batch.batch_size}


def _spoiled(batch: Batch) -> Batch:
    observation = replace(batch.observation, state=torch.full_like(batch.observation.state, float("nan")))
    return replace(batch, observation=observation)


def train_config(**changes: Any) -> TrainConfig:
    quick = TrainConfig(
        steps=6,
        batch_size=4,
        lr=3e-3,
        warmup_steps=2,
        schedule="cosine",
        ema_decay=0.9,
        action_draws=2,
        log_every=1,
        val_every=3,
        save_every=2,
        val_pictures=0,
    )
    return replace(quick, **changes)


def logged(run: Path) -> list[dict[str, Any]]:
    """The records of a run without what its machine decides: times, rates, memory."""
    timed = ("seconds", "samples_per_second")
    return [
        {k: v for k, v in record.items() if k not in timed and not k.startswith(MACHINE)}
        for record in read_log(run)
    ]


def saved_state(checkpoint: Path) -> dict[str, torch.Tensor]:
    """What one rank wrote for `resume`: `model.…`, `average.…` and `optimizer.…` tensors."""
    (file,) = (checkpoint / "training_state").glob("*.safetensors")
    return load_file(file)


def trainer(
    run: Path, stream: MemoryStream | None = None, world: World | None = None, **changes: Any
) -> Trainer:
    torch.manual_seed(0)
    policy = tiny_policy()
    validation = [tiny_batch(1000), tiny_batch(1001), tiny_batch(1002)]
    config, batches = train_config(**changes), stream or MemoryStream()
    return Trainer(policy.model, policy.spec, batches, validation, config, run, world=world)


def parted(run: Path, **changes: Any) -> Trainer:
    """A run that ended after four steps, as if its process had, and went on from its checkpoint to the end."""
    first = trainer(run, **changes)
    batches = first.stream.batches(0, 4)
    first.stream.batches = lambda start, stop, prefetch: batches  # type: ignore[method-assign]
    first.run()
    second = trainer(run, **changes)
    second.resume(find_checkpoint(run))
    assert second.progress.step == 4
    second.run()
    return second
