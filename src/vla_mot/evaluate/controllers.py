"""What acts in an environment: a policy, or any function of an observation.

Environments follow LeRobot's convention: observations are `{"pixels": {camera: (h, w, 3) uint8}, "agent_pos":
(S,)}`, the instruction is the attribute `task`; `other_instruction`, where there is one, is an instruction for
something else in the same scene.

Legend: `B` robots, `S`/`D` real state and action dims, `h`/`w` a camera's own pixels, `m` the foresight offset.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import gymnasium as gym
import numpy as np
import torch
from torch import Tensor

from vla_mot.errors import ConfigError, unknown_name
from vla_mot.infer.chunking import NAIVE, Chunking
from vla_mot.infer.inference import SimulatedInference
from vla_mot.infer.policy import Policy
from vla_mot.infer.session import Session
from vla_mot.robots.embodiment import CAMERA_PREFIX, Embodiment, camera_feature
from vla_mot.robots.images import to_bytes

RawObservation = Mapping[str, Any]
Act = Callable[[RawObservation], np.ndarray]
"""Observation of one robot → its action `(D,)` in physical units."""

_INSTRUCTIONS = {"own": "task", "other": "other_instruction"}


class Controller(Protocol):
    """Acts for B robots in step. `begin` starts fresh episodes; nothing of earlier ones may remain."""

    def begin(self, envs: Sequence[gym.Env], seeds: Sequence[int]) -> list[str]:
        """Start B episodes in environments that were just reset; returns the instruction each robot follows."""

    def act(self, observations: Sequence[RawObservation]) -> np.ndarray:
        """Return actions `(B, D)` in physical units."""

    def keep(self, rows: Sequence[int]) -> None:
        """Go on with only these robots, in this order: the others' episodes are over."""

    def foreseen(self, row: int) -> dict[str, np.ndarray]:
        """Camera → picture `(H, W, 3)` uint8 that this robot expects to see in m frames; empty if it has none."""


class PolicyController:
    """A policy in closed loop.

    history: `past`, or `present` to replace the history frame by the present one.
    instruction: `own`, or `other` to give the instruction for something else in the same scene.
    chunks: what is done with chunks in time.
    delay: control steps from the observation to the arrival of its chunk, as if inference took that long. Meanwhile the
        robot goes on with what it has; at the start, when it has nothing, it holds still while the world moves on.
    remember_latents: see `Session`.
    """

    def __init__(
        self,
        policy: Policy,
        history: str = "past",
        instruction: str = "own",
        chunks: Chunking = NAIVE,
        delay: int = 0,
        *,
        remember_latents: bool = False,
    ) -> None:
        if instruction not in _INSTRUCTIONS:
            raise ConfigError(unknown_name("instruction", instruction, _INSTRUCTIONS))
        self.policy, self.history, self.instruction = policy, history, instruction
        self.chunks, self.delay, self.remember_latents = chunks, delay, remember_latents
        self._session = self._start([])
        self._instructions: list[str] = []

    def begin(self, envs: Sequence[gym.Env], seeds: Sequence[int]) -> list[str]:
        """See `Controller`. Raises ConfigError when the environment has no such instruction, or is another robot's."""
        for env in envs:
            require_robot(env, self.policy.robot.embodiment)
        self._session = self._start(seeds)
        self._instructions = [attribute(env, _INSTRUCTIONS[self.instruction]) for env in envs]
        return list(self._instructions)

    def act(self, observations: Sequence[RawObservation]) -> np.ndarray:
        """See `Controller`."""
        states = torch.as_tensor(np.stack([seen["agent_pos"] for seen in observations]), dtype=torch.float32)
        return self._session.act(camera_images(observations), states, self._instructions).cpu().numpy()

    def keep(self, rows: Sequence[int]) -> None:
        """See `Controller`."""
        self._session.keep(rows)
        self._instructions = [self._instructions[row] for row in rows]

    def foreseen(self, row: int) -> dict[str, np.ndarray]:
        """See `Controller`."""
        latents = self._session.foresight
        if latents is None:
            return {}
        with torch.no_grad():
            pictures = self.policy.model.decode_latents(latents[row : row + 1])[0]
        arrays = to_bytes(pictures.movedim(1, -1)).cpu().numpy()
        cameras = self.policy.robot.embodiment.present_cameras
        return {key.removeprefix(CAMERA_PREFIX): arrays[slot] for slot, key in cameras if slot < len(arrays)}

    def _start(self, seeds: Sequence[int]) -> Session:
        late = SimulatedInference(self.policy, self.delay)
        return Session(
            self.policy,
            seeds,
            history=self.history,
            chunks=self.chunks,
            inference=late,
            remember_latents=self.remember_latents,
        )


class FunctionController:
    """One function per robot, made when its episode begins: a scripted expert, a constant, random actions.

    begin_episode: (environment just reset, seed) → `Act`.
    """

    def __init__(self, begin_episode: Callable[[gym.Env, int], Act]) -> None:
        self._begin_episode = begin_episode
        self._acts: list[Act] = []

    def begin(self, envs: Sequence[gym.Env], seeds: Sequence[int]) -> list[str]:
        """See `Controller`."""
        self._acts = [self._begin_episode(env, seed) for env, seed in zip(envs, seeds, strict=True)]
        return [attribute(env, "task") for env in envs]

    def act(self, observations: Sequence[RawObservation]) -> np.ndarray:
        """See `Controller`."""
        return np.stack([act(seen) for act, seen in zip(self._acts, observations, strict=True)])

    def keep(self, rows: Sequence[int]) -> None:
        """See `Controller`."""
        self._acts = [self._acts[row] for row in rows]

    def foreseen(self, row: int) -> dict[str, np.ndarray]:
        """See `Controller`; a function foresees nothing."""
        return {}


def require_robot(env: gym.Env, embodiment: Embodiment) -> None:
    """Raise ConfigError unless the environment takes the embodiment's actions and gives its state."""
    name = embodiment.name
    if not embodiment.action:
        raise ConfigError(f"embodiment {name!r} has no actions, like a video of people: it drives nothing.")
    spaces = [("actions", env.action_space, embodiment.action_dim)]
    if isinstance(env.observation_space, gym.spaces.Dict) and "agent_pos" in env.observation_space.spaces:
        spaces.append(("a state", env.observation_space["agent_pos"], embodiment.state_dim))
    for what, space, width in spaces:
        if space.shape != (width,):
            raise ConfigError(
                f"embodiment {name!r} has {what} of {width} dimensions, the environment of shape {space.shape}: it is "
                "another robot's. Choose the environment's options (conf/env/) to match."
            )


def camera_images(observations: Sequence[RawObservation]) -> dict[str, Tensor]:
    """B raw observations → LeRobot image feature → `(B, 3, h, w)` uint8.

    Raises ConfigError when the environment gives no pictures.
    """
    if "pixels" not in observations[0]:
        raise ConfigError(f"the environment gives no pictures, only {', '.join(observations[0])}.")
    return {
        camera_feature(camera): torch.from_numpy(
            np.stack([seen["pixels"][camera] for seen in observations])
        ).movedim(-1, 1)
        for camera in observations[0]["pixels"]
    }


def attribute(env: gym.Env, name: str) -> str:
    """An attribute of the environment behind its wrappers. Raises ConfigError naming what is lacking."""
    try:
        return str(env.get_wrapper_attr(name))
    except AttributeError as error:
        raise ConfigError(
            f"environment {env} has no attribute {name!r}, which this controller needs."
        ) from error
