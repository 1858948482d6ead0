"""One policy call of the 3B model on one GPU: ours beside the plain-transformers-style baseline, and beside the floor.

Random weights, random pictures, full token counts. All variants are first proved to give the same actions in float32;
then they are timed in bf16, in turns. The floor of every stage is the larger of its operations over the rate of a large
matrix product and its bytes over the rate of a large copy, both measured in this run. Needs torch with CUDA,
transformers and diffusers; neither lerobot nor Hydra nor a download.

    PYTHONPATH=src python benchmarks/inference_gpu.py [size=3b] [repeats=50] [variants=…] [parts=calls,curves,pi0]

foresight=dct: a tokenizer without weights instead of a random Cosmos one (then diffusers is not needed).
variants=…,plain+autotuned: the baseline by torch.compile with mode=max-autotune, which takes minutes.
pi0: LeRobot's policy at its own size, where LeRobot is installed. device=cpu size=tiny: a try-out.
"""

import sys
from pathlib import Path

import torch
from acting.calls import DEFAULTS, Plan, measure_beside_floor, release
from acting.curves import curves, draw
from acting.floor import show_work, work_of
from acting.pi0 import pi0_seconds, why_not
from acting.tables import show_calls
from acting.trial import DTYPES
from acting.variants import named
from common import describe_machine, parse_arguments, some_of

PARTS = "calls,curves,pi0"


def main() -> None:
    """Measure what was asked for, and print it."""
    options = parse_arguments(
        sys.argv[1:],
        **DEFAULTS,
        device="cuda",
        size="3b",
        dtype="bf16",
        repeats=50,
        warmup=5,
        variants="plain,plain+compiled,ours,ours+static,ours+compiled",
        parts=PARTS,
        curve_variants="plain,ours,ours+static",
        curve_repeats=10,
    )
    plan, parts = Plan.of(options), some_of("part", options["parts"], PARTS.split(","))
    if plan.device.startswith("cuda") and not torch.cuda.is_available():
        _show_work(plan)
        return
    print(describe_machine(plan.device), flush=True)
    model = plan.model()
    if "calls" in parts:
        measure_beside_floor(plan, model)
    if "curves" in parts:
        model.cast(DTYPES[plan.dtype])
        found = curves(
            model, named(options["curve_variants"]), plan.setting, options["curve_repeats"], plan.warmup
        )
        title = f"{plan.size}, {plan.dtype}, {describe_machine(plan.device)}"
        draw(found, Path(options["output"]) / f"inference_gpu_{plan.size}.png", title)
    del model
    release()
    if "pi0" in parts:
        _show_pi0(plan)


def _show_work(plan: Plan) -> None:
    """What can be said without a GPU."""
    print(
        f"{describe_machine('cpu')}\n\nNothing was measured: torch finds no CUDA device.\nTo try the script out:"
    )
    print(
        f"python benchmarks/inference_gpu.py device=cpu size=tiny\n\nA call of the {plan.size} model has to do:"
    )
    show_work(work_of(plan.size, DTYPES[plan.dtype], plan.setting, plan.foresight))


def _show_pi0(plan: Plan) -> None:
    reason = why_not(plan.device)
    if reason:
        print(f"\nLeRobot's pi0 was not measured: {reason}.")
        return
    seconds, weights = pi0_seconds(plan.device, plan.setting, plan.repeats, plan.warmup)
    print(f"\nLeRobot's pi0, another model of {weights / 1e6:,.1f} M weights, in bf16, as it is:")
    show_calls({"pi0": seconds}, {})


if __name__ == "__main__":
    main()
