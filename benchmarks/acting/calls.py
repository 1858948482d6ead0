"""One measurement from beginning to end: proof, calls in turns, stages, memory."""

import gc
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

import torch
from baseline.sizes import build

from acting.equal import answered, difference, prove
from acting.floor import Rates, copy_rate, show_floor, work_of
from acting.scene import Setting, scene
from acting.tables import show_calls, show_stages
from acting.timing import race, stages
from acting.trial import DTYPES, Setup, weighed
from acting.variants import LEGEND, Variant, around, named
from vla_mot.model.model import VlaMotModel
from vla_mot.train.pace import matmul_ceiling

DEFAULTS: dict[str, Any] = {
    "views": 3,
    "steps": 10,
    "batch": 1,
    "foresight": "",
    "memory": True,
    "output": "outputs/benchmarks",
}
"""Arguments that both scripts have."""


@dataclass(frozen=True)
class Plan:
    """What is measured, as the command line says it."""

    size: str
    device: str
    dtype: str
    setting: Setting
    variants: Mapping[str, Variant]
    repeats: int
    warmup: int
    memory: bool
    foresight: str

    @classmethod
    def of(cls, options: Mapping[str, Any]) -> Self:
        """From a script's options. Raises ConfigError for a variant that there is not."""
        kept = ("size", "device", "dtype", "repeats", "warmup", "memory", "foresight")
        setting = Setting(options["views"], options["steps"], batch=options["batch"])
        return cls(
            setting=setting, variants=named(options["variants"]), **{key: options[key] for key in kept}
        )

    def model(self) -> VlaMotModel:
        """With float32 weights, on the device."""
        return build(self.size, self.device, self.foresight).eval()


def describe(plan: Plan, model: VlaMotModel) -> str:
    """Weights, setting and dtype, in words."""
    weights = sum(p.numel() for p in model.parameters())
    setting, chunk = plan.setting, plan.setting.chunk or model.config.chunk_size
    return (
        f"{plan.size}: {weights / 1e6:,.1f} M weights, {plan.dtype}, batch {setting.batch}, {setting.views} views, "
        f"{setting.steps} Euler steps, chunks of {chunk}, {plan.repeats} calls each, in turns"
    )


Seconds = Mapping[str, list[float]]


def measure_beside_floor(plan: Plan, model: VlaMotModel) -> None:
    """`measure`, and print what this device needs at the least for the same."""
    calls, parts = measure(plan, model)
    print(f"\n{LEGEND}")
    rates = Rates(matmul_ceiling(plan.device, plan.dtype), copy_rate(plan.device))
    print(f"\nmatrix product {rates.flops / 1e12:.3g} TFLOP/s, copy {rates.bytes / 1e9:.3g} GB/s")
    show_floor(work_of(plan.size, DTYPES[plan.dtype], plan.setting, plan.foresight), rates, parts, calls)


def measure(plan: Plan, model: VlaMotModel) -> tuple[Seconds, Mapping[str, Seconds]]:
    """Prove, time, weigh, and print the tables; gives `model` the dtype asked for.

    Returns seconds of whole calls, and of stages, by variant.
    """
    print(describe(plan, model), flush=True)
    policy, request = scene(model, plan.setting)
    policies = around(plan.variants, policy)
    prove(policy, {name: mine for name, mine in policies.items() if plan.variants[name].exact}, request)
    exact = answered(policy, request)
    if plan.dtype != "fp32":
        policies.clear()
        release()
        model.cast(DTYPES[plan.dtype])
        policies = around(plan.variants, policy)
    for name, mine in policies.items():
        if plan.dtype != "fp32" or not plan.variants[name].exact:
            apart = difference(answered(mine, request), exact)
            print(f"{name} in {plan.dtype} and ours in fp32 differ by: {apart}", flush=True)
    calls = race(policies, request, plan.repeats, plan.warmup)
    parts = stages(policies, request, plan.repeats)
    policies.clear()
    release()
    show_calls(calls, {name: _weigh(plan, name) for name in plan.variants} if plan.memory else {})
    show_stages(parts)
    return calls, parts


def release() -> None:
    """Give back what nobody needs any more."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def _weigh(plan: Plan, name: str) -> int:
    told = plan.setting
    return weighed(
        Setup(name, plan.size, plan.device, plan.dtype, told.views, told.steps, told.batch, plan.foresight)
    )
