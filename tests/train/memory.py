"""What real steps take: as torch's profiler saw the CPU's allocator hand it out, or as the C library counts it.

    python -m tests.train.memory <file to write to>

does the latter on one of two ranks, for every one of `SHARED`: gloo's threads free buffers, too, and the profiler
sees only what the thread frees that it was started on.
"""

import ctypes
import gc
import json
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from tests.train.mid_size import mid_config, whole_batch
from tests.train.runs import train_config
from torch.utils._python_dispatch import TorchDispatchMode

from vla_mot.model.config import ModelConfig
from vla_mot.model.model import VlaMotModel
from vla_mot.train.average import AveragedWeights
from vla_mot.train.batches import Batches
from vla_mot.train.config import ParallelConfig, TrainConfig
from vla_mot.train.optimizer import Optimizers
from vla_mot.train.parallel import prepare
from vla_mot.train.step import Passes
from vla_mot.train.world import World, join, local

SHARED: dict[str, dict[str, Any]] = {
    "ddp": {"parallel": ParallelConfig("ddp")},
    "fsdp": {"parallel": ParallelConfig("fsdp"), "ema_decay": 0.9},
    "ddp in passes": {"parallel": ParallelConfig("ddp", micro_batch=1, recompute="full")},
    "fsdp, recomputed": {"parallel": ParallelConfig("fsdp", recompute="full")},
    "fsdp in passes": {"parallel": ParallelConfig("fsdp", micro_batch=1)},
}


def train_of(**changes: Any) -> TrainConfig:
    return replace(train_config(batch_size=8, ema_decay=0.0, action_draws=2), **changes)


def batches_of(train: TrainConfig, ranks: int = 1) -> Batches:
    return Batches.of(train.batch_size, ranks, train.parallel.micro_batch, train.parallel.accumulate)


def steps(
    config: ModelConfig, train: TrainConfig, latents: torch.dtype | None = None, world: World | None = None
) -> dict[str, int]:
    """Two real steps; what stays after them on this rank, in bytes."""
    torch.manual_seed(0)
    world = world or World(device=train.device)
    model, batches = VlaMotModel(config), batches_of(train, world.size)
    passes = Passes(model, prepare(model, train, world), train, batches, world)
    optimizers, average = Optimizers(model, train), AveragedWeights(model, train.ema_decay)
    for step in range(2):
        passes.gradient(step, whole_batch(model, batches.share, latents).to(world.device))
        optimizers.step(1e-4)
        gradients = [p.grad for p in model.parameters() if p.grad is not None]
        stays = {
            "parameters": [*model.parameters(), *model.buffers()],
            "gradients": gradients,
            "optimizer": optimizers.tensors().values(),
            "average": average.own.values(),
        }
        found = {name: sum(local(tensor).nbytes for tensor in tensors) for name, tensors in stays.items()}
        del gradients, stays
        optimizers.zero_grad()
        average.update(model)
    return found


def most_allocated(act: Callable[[], Any], trace: Path) -> tuple[int, Any]:
    """The most bytes that the allocator had handed out at one time, and what `act` returned."""
    gc.collect()  # what earlier steps left in cycles
    activities = [torch.profiler.ProfilerActivity.CPU]
    with torch.profiler.profile(activities=activities, profile_memory=True) as profile:
        result = act()
    profile.export_chrome_trace(str(trace))
    events = [e for e in json.loads(trace.read_text())["traceEvents"] if e.get("name") == "[memory]"]
    held: dict[int, int] = {}
    now = most = 0
    for told in (event["args"] for event in sorted(events, key=lambda event: event["ts"])):
        if told["Bytes"] > 0:
            held[told["Addr"]] = told["Bytes"]
            now += told["Bytes"]
        else:
            now -= held.pop(told["Addr"], 0)  # or it was there before
        most = max(most, now)
    return most, result


class _Mallinfo2(ctypes.Structure):
    """glibc's `struct mallinfo2` (mallinfo(3))."""

    _fields_ = [
        *((name, ctypes.c_size_t) for name in ["arena", "ordblks", "smblks", "hblks", "hblkhd"]),
        *((name, ctypes.c_size_t) for name in ["usmblks", "fsmblks", "uordblks", "fordblks", "keepcost"]),
    ]


class InUse(TorchDispatchMode):
    """Asks the C library after every operation of torch what the whole process holds, whichever thread took it.

    most: the most bytes so far beyond what was held at first.
    """

    def __init__(self) -> None:
        super().__init__()
        self._ask = ctypes.CDLL(None).mallinfo2
        self._ask.restype = _Mallinfo2
        self.most = 0
        self._before = self._now()

    def _now(self) -> int:
        told = self._ask()
        return int(told.uordblks + told.hblkhd)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        self.most = max(self.most, self._now() - self._before)
        return result


def most_in_use(act: Callable[[], Any]) -> tuple[int, Any]:
    """The most bytes that the process held at one time beyond those before, and what `act` returned."""
    act()  # libraries keep for good what they made the first time
    gc.collect()
    with InUse() as seen:
        result = act()
    return seen.most, result


def main(output: Path) -> None:
    """Every one of `SHARED` on this rank; the main one writes what it found."""
    torch.set_num_threads(1)
    with join("cpu", 60.0) as world:
        found = {
            name: most_in_use(lambda changes=changes: steps(mid_config(), train_of(**changes), world=world))
            for name, changes in SHARED.items()
        }
        if world.is_main:
            output.write_text(json.dumps(found))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
