"""Demonstrations of Meta-World's scripted experts: the executed action is disturbed, the recorded one stays clean.

An expert that is never disturbed shows one path per scene, and a policy that leaves it has seen nothing like it. So the
hand trembles and is pushed, and the labels are what the expert would do from where the hand really is (DART: Laskey et
al. 2017). The gripper's effort is left alone.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from vla_mot.evaluate.metaworld.env import LONGEST, MetaworldEnv

_STREAM = 0x3E7A


@dataclass(frozen=True)
class DemonstrationNoise:
    """How demonstrations are disturbed, in the units of actions: 1 is a centimetre per step, the most there is.

    tremor: standard deviation of a slow disturbance along x, y, z. correlation: of it, from step to step.
    push_rate: probability per step that a push begins. push: largest part of it along an axis. push_steps: least and
        most steps that it lasts; meanwhile the hand goes where the push goes.
    dwell_steps: steps that are recorded after the success, so that a chunk near the end shows how to hold.
    """

    tremor: float = 0.1
    correlation: float = 0.5
    push_rate: float = 0.02
    push: float = 1.0
    push_steps: tuple[int, int] = (3, 8)
    dwell_steps: int = 10

    def __post_init__(self) -> None:
        """Raises ValueError for a number out of its range."""
        for name, most in {
            "tremor": np.inf,
            "correlation": 1,
            "push_rate": 1,
            "push": np.inf,
            "dwell_steps": np.inf,
        }.items():
            if not 0 <= getattr(self, name) <= most:
                raise ValueError(f"{name} must lie in [0, {most}], got {getattr(self, name)}.")
        least, most = self.push_steps
        if not 0 <= least <= most:
            raise ValueError(f"push_steps must be [least, most] with 0 ≤ least ≤ most, got {[least, most]}.")


@dataclass(frozen=True)
class DemonstrationStep:
    """observation: before the action. action: the clean label, (4,) float32. verdict: after the action."""

    observation: dict[str, Any]
    action: np.ndarray
    verdict: str
    task: str


def demonstrate(env: MetaworldEnv, seed: int, noise: DemonstrationNoise) -> Iterator[DemonstrationStep]:
    """Play one seeded episode with the task's expert; it ends `dwell_steps` after the first success, or by time-out.

    Episodes that did not end in `success` are the caller's to keep or drop.
    """
    disturbance = _Disturbance(noise, seed)
    observation, _ = env.reset(seed=seed)
    left, verdict = None, "running"
    for _ in range(LONGEST):
        action = env.expert_action()
        executed = np.clip(disturbance.apply(action), -1.0, 1.0).astype(np.float32)
        following, _, _, truncated, info = env.step(executed)
        verdict = "success" if left is not None else info["verdict"]
        yield DemonstrationStep(observation, action, verdict, env.task)
        observation = following
        left = noise.dwell_steps if left is None and verdict == "success" else left and left - 1
        if truncated or left == 0:
            return


class _Disturbance:
    """A correlated tremor plus occasional pushes."""

    def __init__(self, noise: DemonstrationNoise, seed: int) -> None:
        self._noise = noise
        self._rng = np.random.default_rng([seed, _STREAM])
        self._tremor: np.ndarray = np.zeros(3)
        self._push: np.ndarray = np.zeros(3)
        self._push_left = 0

    def apply(self, action: np.ndarray) -> np.ndarray:
        """What is executed instead of `action`, (4,)."""
        noise, rng = self._noise, self._rng
        fresh = rng.normal(0.0, noise.tremor, 3) * (1 - noise.correlation**2) ** 0.5
        self._tremor = noise.correlation * self._tremor + fresh
        if self._push_left > 0:
            self._push_left -= 1
        elif rng.random() < noise.push_rate:
            self._push = rng.uniform(-noise.push, noise.push, 3)
            self._push_left = int(rng.integers(*noise.push_steps, endpoint=True))
        moved = self._push if self._push_left > 0 else action[:3] + self._tremor
        return np.append(moved, action[3])
