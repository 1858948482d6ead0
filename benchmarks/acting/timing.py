"""Calls in turns, stages one by one, and percentiles of both.

A call is `Policy.predict` from pictures on the host to actions on the host. Stages are timed in calls of their own, for
a clock between two of them has to wait for the device.
"""

import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from common import synchronize

from acting.plain import STAGES
from acting.scene import Request
from acting.variants import HistoryKnown, PlainPolicy
from vla_mot.infer.policy import Policy

REST = "rest"
PERCENTILES = (50, 90, 99)


def race(
    policies: Mapping[str, Policy], request: Request, repeats: int, warmup: int
) -> dict[str, list[float]]:
    """Seconds per call of each, in turns; a busy machine slows all alike. `warmup` rounds before do not count."""
    found: dict[str, list[float]] = {name: [] for name in policies}
    for turn in range(warmup + repeats):
        for name, policy in policies.items():
            start = time.perf_counter()
            policy.predict(request.images, request.state, request.instructions, request.noise).actions.cpu()
            took = time.perf_counter() - start
            if turn >= warmup:
                found[name].append(took)
    return found


def stages(
    policies: Mapping[str, Policy], request: Request, repeats: int
) -> dict[str, dict[str, list[float]]]:
    """Policy → stage → seconds of each of `repeats` calls, in turns. The policies have been called before."""
    found: dict[str, dict[str, list[float]]] = {name: {} for name in policies}
    for _ in range(repeats):
        for name, policy in policies.items():
            for stage, took in _staged(policy, request).items():
                found[name].setdefault(stage, []).append(took)
    return found


def percentiles(seconds: Sequence[float]) -> list[float]:
    """p50, p90 and p99."""
    shares = torch.tensor(PERCENTILES, dtype=torch.float64) / 100
    return torch.quantile(torch.tensor(seconds, dtype=torch.float64), shares).tolist()


def _staged(policy: Policy, request: Request) -> dict[str, float]:
    """Stage → seconds of one call."""
    if policy.engine is not None:
        return _engine_staged(policy, request)
    device = str(policy.device)
    with watched(_places(policy), device) as seconds:
        start = time.perf_counter()
        policy.predict(request.images, request.state, request.instructions, request.noise).actions.cpu()
        whole = time.perf_counter() - start
    return {**seconds, REST: whole - sum(seconds.values())}


def _engine_staged(policy: Policy, request: Request) -> dict[str, float]:
    engine, sampler, device = policy.engine, policy.spec.sampler, str(policy.device)
    assert engine is not None
    width = policy.robot.embodiment.action_dim
    start = time.perf_counter()
    seen = policy.observe(request.images, request.state, request.instructions)
    synchronize(device)
    looked = encoded = time.perf_counter()
    if isinstance(policy, HistoryKnown):
        seen = replace(seen, latents=policy.latents(request.images))
        synchronize(device)
        encoded = time.perf_counter()
    told = engine.timed(seen, request.noise, sampler.num_steps, width, solver=sampler.solver)
    whole = time.perf_counter() - start
    seconds = Counter({"preprocess": looked - start, "encode": encoded - looked})
    seconds.update(told)
    return {**seconds, REST: whole - seconds.total()}


def _places(policy: Policy) -> dict[str, tuple[Any, str]]:
    """Stage → whose method is timed for it."""
    seen: dict[str, tuple[Any, str]] = {"preprocess": (policy, "observe")}
    if isinstance(policy, PlainPolicy):
        return seen | {stage: (policy.sampler, stage) for stage in STAGES}
    model = policy.model
    return seen | {
        "vision": (model.understanding, "forward"),
        "encode": (model, "encode_frames"),
        "prefill": (model, "prefill"),
        "denoise": (model, "denoise"),
    }


@contextmanager
def watched(places: Mapping[str, tuple[Any, str]], device: str) -> Iterator[dict[str, float]]:
    """While it is open, the seconds that methods take are added up by stage; of one inside another, only there."""
    seconds: Counter[str] = Counter(dict.fromkeys(places, 0.0))
    inner: list[float] = []

    def timed(stage: str, method: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            synchronize(device)
            start = time.perf_counter()
            inner.append(0.0)
            result = method(*args, **kwargs)
            synchronize(device)
            took = time.perf_counter() - start
            seconds[stage] += took - inner.pop()
            if inner:
                inner[-1] += took
            return result

        return call

    before = {stage: vars(owner).get(name) for stage, (owner, name) in places.items()}
    for stage, (owner, name) in places.items():
        setattr(owner, name, timed(stage, getattr(owner, name)))
    try:
        yield seconds
    finally:
        for stage, (owner, name) in places.items():
            if before[stage] is None:
                delattr(owner, name)
            else:
                setattr(owner, name, before[stage])
