"""What each of two ranks does, one scenario after the other, in processes that import torch once.

    python -m tests.train.ranks <folder of the one-rank run> <folder to write to> [scenario …]

Every scenario trains the tiny policy for ten steps on its rank's half of each batch; the main rank saves what it found.
"""

import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from tests.train.runs import MemoryStream, logged, trainer

from vla_mot.batch import Batch
from vla_mot.train.average import fill
from vla_mot.train.checkpoint import find_checkpoint
from vla_mot.train.config import AdapterConfig, ExpertsConfig, ExpertTraining, ParallelConfig
from vla_mot.train.loop import Trainer
from vla_mot.train.world import World, join, whole

STEPS = 10
ADAPTED = ExpertsConfig(
    vision=ExpertTraining(frozen=True),
    understanding=ExpertTraining(adapter=AdapterConfig(rank=3, alpha=5.0)),
    action=ExpertTraining(adapter=AdapterConfig(kind="dora", rank=2, alpha=4.0), lr_scale=2.0),
)
ALONE: dict[str, dict[str, Any]] = {
    "adamw": {},
    "muon": {"optimizer": "muon"},
    "adapted": {"experts": ADAPTED},
    "insulated": {"insulate": True},
}
"""What a run computes; the last word of a scenario says which, `adamw` where it is none of these."""
SCENARIOS: dict[str, dict[str, Any]] = {
    "ddp": {"parallel": ParallelConfig("ddp")},
    "fsdp": {"parallel": ParallelConfig("fsdp")},
    "ddp in passes": {"parallel": ParallelConfig("ddp", micro_batch=1, recompute="full")},
    "fsdp in passes": {"parallel": ParallelConfig("fsdp", micro_batch=1, recompute="full")},
    "fsdp asynchronous": {"parallel": ParallelConfig("fsdp"), "save_async": True},
    "hybrid": {"parallel": ParallelConfig("fsdp", shard_ranks=1)},
    "fsdp muon": {"parallel": ParallelConfig("fsdp")},
    "ddp adapted": {"parallel": ParallelConfig("ddp")},
    "fsdp adapted": {"parallel": ParallelConfig("fsdp")},
    "ddp insulated": {"parallel": ParallelConfig("ddp")},
    "fsdp insulated": {"parallel": ParallelConfig("fsdp")},
}
SLOW: dict[str, dict[str, Any]] = {
    "two copies of two shards": {"parallel": ParallelConfig("fsdp", shard_ranks=2)},
    "compiled shards": {"parallel": ParallelConfig("fsdp", compile=True, recompute="selective")},
}
"""By more ranks, or with a compiler."""
RESUMED = {f"resumed {strategy}": {"parallel": ParallelConfig(strategy)} for strategy in ("ddp", "fsdp")}
"""From the checkpoint of one rank."""


class Share(MemoryStream):
    """A rank's consecutive part of the batches in memory."""

    def __init__(self, rank: int, size: int) -> None:
        super().__init__()
        self.rank, self.size = rank, size

    def batches(self, start: int = 0, stop: int | None = None, prefetch: int = 2) -> Iterator[Batch]:
        for batch in super().batches(start, stop, prefetch):
            each = batch.batch_size // self.size
            yield batch[slice(self.rank * each, (self.rank + 1) * each)]

    def describe(self, batch: Batch) -> str:
        return f"{super().describe(batch)} on rank {self.rank}"


def ranked(run: Path, world: World, **changes: Any) -> Trainer:
    """The trainer of `tests.train.runs`, on one of several ranks."""
    settings = {"steps": STEPS, "save_every": 5, "val_every": 5, "keep_checkpoints": 5} | changes
    made = trainer(run, Share(world.rank, world.size), world, **settings)
    draw_adapters(made)
    return made


def draw_adapters(run: Trainer) -> None:
    """Away from their start, where half of their gradients are zero."""
    generator = torch.Generator().manual_seed(2)
    for name, weight in run.model.named_parameters():
        if "lora_B" in name:
            fill(weight, 0.3 * torch.randn(weight.shape, generator=generator))


def alone_of(name: str) -> str:
    """Which of `ALONE` a scenario must equal."""
    last = name.rpartition(" ")[2]
    return last if last in ALONE else "adamw"


def first_gradient(run: Trainer) -> dict[str, torch.Tensor]:
    """Of step 0, whole, by name; the weights stay as they are."""
    batch = next(run.stream.batches(0, 1))
    run.passes.gradient(0, batch)
    found = {n: whole(p.grad).clone() for n, p in run.model.named_parameters() if p.grad is not None}
    run.optimizers.zero_grad()
    return found


def findings(run: Trainer) -> dict[str, Any]:
    """What ten steps found, from the first on or from where a checkpoint left off."""
    gradient = first_gradient(run)
    run.run()
    weights = {name: whole(tensor).clone() for name, tensor in run.model.state_dict().items()}
    average = {name: whole(tensor).clone() for name, tensor in run.average.state(run.model).items()}
    return {"gradient": gradient, "log": logged(run.run_folder), "weights": weights, "average": average}


def main(alone: Path, output: Path, names: Sequence[str]) -> None:
    """Every named scenario."""
    torch.set_num_threads(1)
    with join("cpu", 120.0) as world:
        for name in names:
            run = ranked(output / name, world, **ALONE[alone_of(name)], **(SCENARIOS | SLOW | RESUMED)[name])
            if name in RESUMED:
                run.resume(find_checkpoint(alone / "checkpoints" / "000005"))
            found = findings(run)
            if world.is_main:
                torch.save(found, output / f"{name}.pt")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3:])
