"""Demonstrations with perturbations and recoveries, and labels that stay clean.

Behaviour cloning of chunks drifts: a learned policy comes to places where a perfect expert never was. So the
executed action is disturbed while the *label* is the undisturbed action of an expert that replans at every
step from where the gripper really is (DART: Laskey et al. 2017). The disturbances: a wait at the start, a slowly
varying tremor, and pushes that hold the gripper off course for several steps, long enough for a missed grasp,
from which the following labels recover. None of them depends on the belt's velocity, so that where a gripper is
found never gives the velocity away.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from vla_mot.envs.conveyor.env import ConveyorEnv
from vla_mot.envs.conveyor.expert import plan_chunk

DEMONSTRATION_STEPS = 90  # control steps that a demonstration, with its waits and recoveries, may take


@dataclass(frozen=True)
class DemonstrationNoise:
    """How demonstrations are disturbed.

    Attributes:
        tremor: standard deviation in metres of the slow disturbance of x and y.
        correlation: of the tremor, from one step to the next.
        push_rate: probability per step that a push begins.
        push: largest offset in metres of a push along x (along y: half of it).
        push_steps: least and most steps that a push lasts.
        approach_push_rate: probability that the episode begins with a push.
        approach_push, approach_push_steps: its size and length. A policy cannot know the velocity in its
            first chunk, so it must have seen itself off course when the second begins.
        wait_steps: least and most steps that the gripper is held still at first. Otherwise its height would
            tell how long the belt has been running, and the blocks' place then hints at the velocity.
    """

    tremor: float = 0.004
    correlation: float = 0.7
    push_rate: float = 0.03
    push: float = 0.045
    push_steps: tuple[int, int] = (2, 6)
    approach_push_rate: float = 0.7
    approach_push: float = 0.08
    approach_push_steps: tuple[int, int] = (6, 14)
    wait_steps: tuple[int, int] = (0, 8)

    def __post_init__(self) -> None:
        """Raises ValueError for a number out of its range."""
        for name, (least, most) in {
            "tremor": (0, np.inf),
            "correlation": (0, 1),
            "push_rate": (0, 1),
            "push": (0, np.inf),
            "approach_push_rate": (0, 1),
            "approach_push": (0, np.inf),
        }.items():
            if not least <= getattr(self, name) <= most:
                raise ValueError(f"{name} must lie in [{least}, {most}], got {getattr(self, name)}.")
        for name in ("push_steps", "approach_push_steps", "wait_steps"):
            least, most = getattr(self, name)
            if not 0 <= least <= most:
                raise ValueError(f"{name} must be [least, most] with 0 ≤ least ≤ most, got {[least, most]}.")


@dataclass(frozen=True)
class DemonstrationStep:
    """One step of a demonstration: what was seen, what should be done, what was done.

    Attributes:
        observation: the environment's observation *before* the action.
        action: (A,) float32, the clean label in metres; what a dataset records as `action`.
        executed: (A,) float32, the disturbed action that the environment received.
        info: the environment's info *after* the action; the last step's `verdict` judges the episode.
        task: the instruction.
    """

    observation: dict[str, Any]
    action: np.ndarray
    executed: np.ndarray
    info: dict[str, Any]
    task: str


def demonstrate(
    env: ConveyorEnv,
    seed: int,
    noise: DemonstrationNoise | None = None,
    options: dict[str, Any] | None = None,
    dwell_steps: int = 10,
) -> Iterator[DemonstrationStep]:
    """Play one seeded episode with the velocity-knowing expert, replanning at every step.

    Args:
        env: a `ConveyorEnv`, or a wrapper around one that does not change actions. Waits and recoveries take
            time: give it `max_steps=DEMONSTRATION_STEPS`.
        seed: of the scene and of the disturbance.
        noise: how to disturb; None takes the defaults.
        options: handed to `env.reset`, for example `{"target": "red"}`.
        dwell_steps: steps that go on after a success, with the gripper open over the tray. Without them hardly
            any step of any chunk would show the release, and a policy would carry the block for ever.

    Yields:
        One `DemonstrationStep` per control step, until the episode ends. Episodes that did not end in
        `success` are the caller's to keep or drop.
    """
    inner: ConveyorEnv = env.unwrapped
    disturbance = _Disturbance(noise or DemonstrationNoise(), seed)
    observation, _ = env.reset(seed=seed, options=options)
    ended = False
    while not ended:
        action, executed = _next_action(inner, disturbance)
        following, _, terminated, truncated, info = env.step(executed)
        yield DemonstrationStep(observation, action, executed, info, inner.task)
        observation, ended = following, terminated or truncated
    for _ in range(dwell_steps if info["is_success"] else 0):
        action, executed = _next_action(inner, disturbance)
        # The environment itself: a wrapper may refuse steps after the end.
        following, *_, info = inner.step(executed)
        yield DemonstrationStep(observation, action, executed, info, inner.task)
        observation = following


def _next_action(inner: ConveyorEnv, disturbance: "_Disturbance") -> tuple[np.ndarray, np.ndarray]:
    """The clean label and the disturbed action to execute, (A,) float32 each."""
    state = inner.privileged_state()
    plan = plan_chunk(state, inner.target_index, state.belt_velocity, steps=1)[0]
    disturbed = inner.robot.command(disturbance.apply(plan, np.array(state.gripper)))
    executed = np.clip(disturbed, inner.action_space.low, inner.action_space.high).astype(np.float32)
    return inner.robot.command(plan), executed


class _Disturbance:
    """A correlated tremor plus occasional pushes, in metres."""

    def __init__(self, noise: DemonstrationNoise, seed: int) -> None:
        self._noise = noise
        self._rng = np.random.default_rng([seed, 0xD157])
        self._tremor: np.ndarray = np.zeros(2)
        self._push: np.ndarray = np.zeros(2)
        self._push_left = 0
        self._wait_left = int(self._rng.integers(*noise.wait_steps, endpoint=True))
        if self._rng.random() < noise.approach_push_rate:
            self._begin(noise.approach_push, noise.approach_push_steps)

    def _begin(self, size: float, steps: tuple[int, int]) -> None:
        self._push = self._rng.uniform(-size, size, 2) * [1.0, 0.5]
        self._push_left = int(self._rng.integers(*steps, endpoint=True))

    def apply(self, action: np.ndarray, gripper: np.ndarray) -> np.ndarray:
        """What the gripper should do instead of `action`, (3,) x, y, aperture; the aperture is left alone."""
        if self._wait_left > 0:
            self._wait_left -= 1
            return gripper
        noise, rng = self._noise, self._rng
        fresh = rng.normal(0.0, noise.tremor, 2) * (1 - noise.correlation**2) ** 0.5
        self._tremor = noise.correlation * self._tremor + fresh
        if self._push_left > 0:
            self._push_left -= 1
        elif rng.random() < noise.push_rate:
            self._begin(noise.push, noise.push_steps)
        push = self._push if self._push_left > 0 else np.zeros(2)
        return action + np.append(self._tremor + push, 0.0)
