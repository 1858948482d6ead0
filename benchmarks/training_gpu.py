"""Training the 3B model on one GPU: ours beside the plain-transformers-style baseline, to saturation or out of memory.

Random weights, random pictures, full token counts. Both models are first proved to compute the same. Every variant has
a process of its own, in which the batch size doubles until memory ends or samples per second hardly grow. Utilisation
is the model's FLOPs (nothing recomputed is counted) over what the GPU's own bf16 matrix product could do in that time.
Needs torch with CUDA, transformers and diffusers; neither lerobot nor Hydra nor a download.

    PYTHONPATH=src python benchmarks/training_gpu.py [size=3b] [batches=1,2,4,…] [repeats=5] [variants=…]

foresight=dct: a tokenizer without weights instead of a random Cosmos one (then diffusers is not needed).
latents=true: pictures are encoded before the step, as with data.latents. device=cpu size=tiny: a try-out.
"""

import statistics
import sys
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from typing import Any

import torch
from baseline.equal import prove
from baseline.sizes import describe
from baseline.trial import Setup, training_batch, tried
from baseline.variants import LEGEND, Variant
from common import describe_machine, head, parse_arguments, row

from vla_mot.train.config import TrainConfig
from vla_mot.train.flops import cost_of
from vla_mot.train.pace import matmul_ceiling

GIB = 2**30
BATCHES = "1,2,4,8,16,32,64,128,256"
ALL = (
    "plain+bf16,plain+full+bf16,lean+bf16,ours+bf16,ours+compiled+bf16,ours+selective+bf16,"
    "ours+selective+compiled+bf16,ours+full+bf16,ours+full+compiled+bf16"
)
GAIN = 0.03  # of samples per second by a doubled batch, below which a device is saturated

Found = Mapping[str, list[dict[str, Any]]]
"""Variant → what its trial said of each batch size."""


def main() -> None:
    """Prove, measure variant after variant, and print both tables."""
    options = parse_arguments(
        sys.argv[1:],
        device="cuda",
        size="3b",
        batches=BATCHES,
        warmup=3,
        repeats=5,
        variants=ALL,
        foresight="",
        latents=False,
    )
    if options["device"].startswith("cuda") and not torch.cuda.is_available():
        print(
            f"{describe_machine('cpu')}\n\nNothing was measured: torch finds no CUDA device.\nTo try the script out:"
        )
        print("python benchmarks/training_gpu.py device=cpu size=tiny batches=1,2")
        return
    setups = [_setup(options, name) for name in options["variants"].split(",")]
    # In a process of its own, so that its memory is given back.
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as elsewhere:
        facts = elsewhere.submit(examine, setups[0]).result()
    show_best(try_all(setups, facts))
    print(f"\n{LEGEND}")


def _setup(options: Mapping[str, Any], name: str) -> Setup:
    Variant.of(name)  # a mistake is to be told before anything is measured
    kept = {key: options[key] for key in ("size", "device", "warmup", "repeats", "foresight", "latents")}
    return Setup(name, batches=tuple(map(int, options["batches"].split(","))), gain=GAIN, **kept)


def examine(setup: Setup) -> dict[str, float]:
    """Say what is measured, and prove that it is the same; returns FLOPs per sample and FLOP/s of matrix products."""
    model = setup.model()
    batch = training_batch(setup, model, 2)
    print(describe_machine(setup.device))
    print(describe(model, batch), flush=True)
    prove(model, batch)
    ceilings = {precision: matmul_ceiling(setup.device, precision) for precision in ("fp32", "bf16")}
    cost = cost_of(model.config, TrainConfig(), torch.float32 if setup.latents else None)
    print(
        f"model FLOPs per sample {cost.flops / 1e12:.3g} T, of which {cost.encoding / 1e12:.3g} T encode pictures; "
        + ", ".join(f"{name} matrix product {rate / 1e12:.1f} TFLOP/s" for name, rate in ceilings.items()),
        flush=True,
    )
    return ceilings | {"flops": float(cost.flops)}


def try_all(setups: Sequence[Setup], facts: Mapping[str, float]) -> Found:
    """Measure one variant after the other, and print each batch size as it comes."""
    found: dict[str, list[dict[str, Any]]] = {}
    print()
    head("variant", "batch", "s / step", "samples / s", "peak GiB", "utilisation")
    for setup in setups:
        told = found[setup.variant] = []
        ceiling = facts[Variant.of(setup.variant).parallel.precision]
        try:
            for one in tried(setup):
                told.append(one)
                row(setup.variant, one["batch"], *_cells(one, facts["flops"], ceiling))
        except RuntimeError as error:  # the others are still worth measuring
            row(setup.variant, "", error, "", "", "")
    return found


def _cells(one: Mapping[str, Any], flops: float, ceiling: float) -> tuple[str, ...]:
    if not one["fits"]:
        return "out of memory", "", "", ""
    seconds, rate = statistics.median(one["seconds"]), _rate(one)
    return f"{seconds:.3f}", f"{rate:.2f}", f"{one['peak'] / GIB:.1f}", f"{flops * rate / ceiling:.1%}"


def show_best(found: Found) -> None:
    """Print each variant's best, beside the first variant's best and beside it at the same batch size."""
    (base, first), *_ = found.items()
    same = {one["batch"]: one for one in _fitting(first)}
    print()
    head(
        "variant",
        "best batch",
        "samples / s",
        f"over {base}",
        "largest shared batch",
        "samples / s over it",
        "peak over it",
    )
    for name, told in found.items():
        if not (own := _fitting(told)):
            row(name, "none fits", "", "", "", "", "")
            continue
        best = max(own, key=_rate)
        gain = f"{_rate(best) / max(map(_rate, same.values())):.2f}" if same else ""
        shared = [one for one in own if one["batch"] in same]
        pair = (shared[-1], same[shared[-1]["batch"]]) if shared else None
        beside = (
            [f"{_rate(pair[0]) / _rate(pair[1]):.2f}", f"{pair[0]['peak'] / pair[1]['peak']:.2f}"]
            if pair
            else ["", ""]
        )
        row(name, best["batch"], f"{_rate(best):.2f}", gain, pair[0]["batch"] if pair else "", *beside)


def _fitting(told: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    return [one for one in told if one["fits"]]


def _rate(one: Mapping[str, Any]) -> float:
    """Samples per second."""
    return one["batch"] / statistics.median(one["seconds"])


if __name__ == "__main__":
    main()
