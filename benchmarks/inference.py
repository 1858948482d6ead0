"""One policy call of ours beside the plain-transformers-style baseline, on the CPU at a mid size.

All variants hold the same weights and are first proved to give the same actions. They take turns, call by call, so that
a busy machine slows them alike; peak memory is that of a process of its own per variant, above what it held after its
imports.

    python benchmarks/inference.py [size=mid|tiny] [dtype=fp32|bf16] [repeats=30] [variants=plain,…] [parts=…]

calls: percentiles of whole calls and of their stages, rate, memory, and the floor of every stage, counted and measured
as in inference_gpu.py. curves: cost against views, denoising steps, chunk and batch, drawn into output=…. effects: what
other and fewer integration steps do to the actions of a trained policy (checkpoint=… dataset=…, those of `make demo`).
"""

import sys
from pathlib import Path

from acting.calls import DEFAULTS, Plan, measure_beside_floor, release
from acting.curves import curves, draw
from acting.effects import show_effects
from acting.trial import DTYPES
from acting.variants import named
from common import describe_machine, parse_arguments, some_of

PARTS = "calls,curves,effects"


def main() -> None:
    """Measure what was asked for, and print it."""
    options = parse_arguments(
        sys.argv[1:],
        **DEFAULTS,
        size="mid",
        dtype="fp32",
        repeats=30,
        warmup=3,
        variants="plain,ours,ours+static,ours+compiled",
        parts=PARTS,
        curve_variants="plain,ours,ours+static",
        curve_repeats=7,
        checkpoint="outputs/demo/policy",
        dataset="outputs/demo/dataset",
        cache="outputs/demo/frames",
        samples=64,
        draws=4,
        effect_kind="static",
    )
    print(describe_machine("cpu"), flush=True)
    parts = some_of("part", options["parts"], PARTS.split(","))
    plan = Plan.of(options | {"device": "cpu"})
    if "calls" in parts:
        measure_beside_floor(plan, plan.model())
        release()
    if "curves" in parts:
        found = curves(
            plan.model().cast(DTYPES[plan.dtype]),
            named(options["curve_variants"]),
            plan.setting,
            options["curve_repeats"],
            plan.warmup,
        )
        draw(found, Path(options["output"]) / f"inference_{plan.size}.png", f"{plan.size}, {plan.dtype}, CPU")
    if "effects" in parts:
        show_effects(
            options["checkpoint"],
            options["dataset"],
            options["cache"],
            options["samples"],
            options["draws"],
            options["repeats"],
            options["effect_kind"],
        )


if __name__ == "__main__":
    main()
