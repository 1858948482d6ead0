"""One variant in a process of its own: seconds per step and peak memory at one batch size after the other.

It reads a `Setup` as JSON from its command line, prints one line of JSON per batch size, and ends at the first that
does not fit into memory or is hardly faster than the one before.
"""

import json
import statistics
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from common import peak, random_batch, resident, said_by, synchronize

from baseline.sizes import build
from baseline.variants import Runner, Variant
from vla_mot.batch import Batch
from vla_mot.model.model import VlaMotModel


@dataclass(frozen=True)
class Setup:
    """What is tried.

    batches: sizes, ascending. warmup, repeats: steps that are not timed, and that are. gain: a batch size whose
    samples per second grow by less than this share is the last. foresight: another tokenizer than the size's.
    latents: those of the pictures are given, not encoded in the step.
    """

    variant: str
    size: str
    device: str
    batches: tuple[int, ...]
    warmup: int = 1
    repeats: int = 1
    gain: float = 0.0
    foresight: str = ""
    latents: bool = False

    def model(self) -> VlaMotModel:
        """With its weights on the device."""
        return build(self.size, self.device, self.foresight)


def tried(setup: Setup) -> Iterator[dict[str, Any]]:
    """Run a setup in a new process; what it says about each batch size. Raises RuntimeError when it dies."""
    return said_by("baseline.trial", asdict(setup), setup.variant)


def main() -> None:
    """Measure, and say so."""
    setup = Setup(**json.loads(sys.argv[1]))
    before = resident()
    model = setup.model()
    runner, rate = Runner(model, Variant.of(setup.variant), setup.device), 0.0
    for size in setup.batches:
        try:
            told = _measure(setup, model, runner, size, before)
        except torch.OutOfMemoryError:
            print(json.dumps({"batch": size, "fits": False}), flush=True)
            return
        print(json.dumps({"batch": size, "fits": True} | told), flush=True)
        now = size / statistics.median(told["seconds"])
        if now < (1 + setup.gain) * rate:
            return
        rate = now


def _measure(setup: Setup, model: VlaMotModel, runner: Runner, size: int, before: int) -> dict[str, Any]:
    """Steps of one batch size. peak: bytes, on the GPU all of them, on the CPU those above `before`."""
    torch.compiler.reset()  # the first size is not to be an example of many: each gets a program of its own
    batch = training_batch(setup, model, size)
    losses = [runner.step(batch) for _ in range(setup.warmup)]
    if setup.device.startswith("cuda"):
        torch.cuda.reset_peak_memory_stats()
    seconds = []
    for _ in range(setup.repeats):
        synchronize(setup.device)
        start = time.perf_counter()
        losses.append(runner.step(batch))
        synchronize(setup.device)
        seconds.append(time.perf_counter() - start)
    return {"seconds": seconds, "peak": peak(setup.device, before), "loss": losses[0]}


def training_batch(setup: Setup, model: VlaMotModel, size: int) -> Batch:
    """Random samples with nothing masked."""
    batch = random_batch(model, size, setup.device)
    if not setup.latents:
        return batch
    seen = batch.observation
    past, future = (
        torch.cat([model.encode_frames(pictures) for pictures in frames.split(1)])
        for frames in (seen.images, batch.future.unsqueeze(2))
    )
    return replace(batch, observation=replace(seen, latents=past), future_latents=future.squeeze(2))


if __name__ == "__main__":
    main()
