"""A training step of ours beside the plain-transformers-style baseline, on the CPU at a mid size.

Both hold the same weights and are first proved to compute the same losses and gradients. The variants take turns, step
by step, so that a busy machine slows them alike; medians over repeats are printed. Peak memory is that of a process of
its own per variant, above what it held after its imports, at a larger batch, so that activations weigh something beside
weights and optimizer.

    python benchmarks/training.py [size=mid|tiny] [batch=2] [repeats=7] [memory=8] [variants=plain,lean,ours,…]

memory: the batch size at which memory is measured; 0: not at all.
"""

import statistics
import sys
import time
from collections.abc import Mapping
from typing import Any

from baseline.equal import prove
from baseline.sizes import build, describe
from baseline.trial import Setup, tried
from baseline.variants import LEGEND, Runner, Variant
from common import describe_machine, head, parse_arguments, random_batch, row, spread

from vla_mot.batch import Batch

MIB = 2**20
ALL = "plain,lean,ours,ours+compiled,ours+selective,ours+full,plain+bf16,ours+bf16,ours+compiled+bf16"
NEAR = {"fp32": 1e-4, "bf16": 2e-2}
"""How far the loss of a variant may lie from ours in float32, relative."""


def main() -> None:
    """Prove, time, weigh, and print the table."""
    options = parse_arguments(sys.argv[1:], size="mid", batch=2, repeats=7, memory=8, variants=ALL)
    variants = {name: Variant.of(name) for name in options["variants"].split(",")}
    model = build(options["size"], "cpu")
    batch = random_batch(model, options["batch"], "cpu")
    print(describe_machine("cpu"))
    print(f"{describe(model, batch)}, float32 unless bf16, AdamW, {options['repeats']} repeats", flush=True)
    loss = prove(model, batch)
    runners = {
        name: Runner(build(options["size"], "cpu"), variant, "cpu") for name, variant in variants.items()
    }
    for name, runner in runners.items():
        _require_near(name, variants[name], runner.step(batch), loss)
    seconds = race(runners, batch, options["repeats"])
    runners.clear()
    peaks = {name: _peak(options, name) for name in variants} if options["memory"] else {}
    show(seconds, batch.batch_size, peaks, options["memory"])
    print(f"\n{LEGEND}")


def race(runners: Mapping[str, Runner], batch: Batch, repeats: int) -> dict[str, list[float]]:
    """Seconds per step of each, in turns. A first round, in which compilers may still work, does not count."""
    found: dict[str, list[float]] = {name: [] for name in runners}
    for _ in range(repeats + 1):
        for name, runner in runners.items():
            start = time.perf_counter()
            runner.step(batch)
            found[name].append(time.perf_counter() - start)
    return {name: times[1:] for name, times in found.items()}


def show(seconds: Mapping[str, list[float]], size: int, peaks: Mapping[str, int], weighed: int) -> None:
    """Print the table; ratios are to the first variant, of the same round."""
    base, *_ = seconds
    print()
    titles = (f"peak MiB, batch {weighed}", f"over {base}") if peaks else ()
    head("variant", "s / step", "samples / s", f"over {base}", *titles)
    for name, times in seconds.items():
        gains = [first / own for first, own in zip(seconds[base], times, strict=True)]
        rate = f"{size / statistics.median(times):.2f}"
        weight = (f"{peaks[name] / MIB:.0f}", f"{peaks[name] / peaks[base]:.2f}") if peaks else ()
        row(name, spread(times, ".2f"), rate, spread(gains, ".2f"), *weight)


def _peak(options: Mapping[str, Any], name: str) -> int:
    """Bytes that two steps take in a new process."""
    [told] = tried(Setup(name, options["size"], "cpu", (options["memory"],)))
    return told["peak"]


def _require_near(name: str, variant: Variant, loss: float, ours: float) -> None:
    apart = abs(loss - ours) / abs(ours)
    assert apart < NEAR[variant.parallel.precision], f"{name} computes another loss: {loss}, ours {ours}"


if __name__ == "__main__":
    main()
