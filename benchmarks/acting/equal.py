"""Proof that all variants give the same actions: a benchmark of other maths would be worth nothing."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch

from acting.scene import Request
from vla_mot.batch import ActionChunk
from vla_mot.infer.policy import Policy

NEAR = 1e-4
"""Largest difference in float32, in deviations of the actions and of the foreseen latents."""


@dataclass(frozen=True)
class Difference:
    """From what our model gives as it is. actions, mean: at most, and on average. foresight: at most."""

    actions: float
    mean: float
    foresight: float

    def __str__(self) -> str:
        return f"actions {self.actions:.1e} (mean {self.mean:.1e}), foresight {self.foresight:.1e}"


def answered(policy: Policy, request: Request) -> ActionChunk:
    """What a policy answers, in numbers of its own."""
    chunk = policy.predict(request.images, request.state, request.instructions, request.noise)
    return ActionChunk(chunk.actions.float().clone(), chunk.foresight.float().clone())


def difference(mine: ActionChunk, theirs: ActionChunk) -> Difference:
    """Of two answers."""
    apart = (mine.actions - theirs.actions).abs()
    return Difference(float(apart.max()), float(apart.mean()), _most(mine.foresight - theirs.foresight))


def prove(ours: Policy, policies: Mapping[str, Policy], request: Request) -> None:
    """Show that the policies answer what ours does, in float32, on every call.

    Raises AssertionError when they do not.
    """
    torch.backends.cudnn.allow_tf32 = False  # else convolutions are rounded, and not in the same places
    reference = answered(ours, request)
    for name, policy in policies.items():
        for _ in range(2):  # an engine may remember something between calls
            found = difference(answered(policy, request), reference)
            assert found.actions < NEAR and found.foresight < NEAR, (
                f"{name} computes something else than ours: {found}"
            )
        print(f"{name} and ours differ by: {found}", flush=True)


def _most(apart: torch.Tensor) -> float:
    return float(apart.abs().max())
