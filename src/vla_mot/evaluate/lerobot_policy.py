"""Policies of LeRobot in our closed loop: the yardsticks beside ours, on the same seeds and pictures.

Those that predict chunks of `chunk_size` from one observation. Tested with ACT; Diffusion and TD-MPC are refused.

Legend: `B` robots, `L` chunk steps, `D` action dims.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from torch import Tensor

from vla_mot.errors import ConfigError
from vla_mot.evaluate.controllers import RawObservation, attribute, camera_images
from vla_mot.robots.images import to_unit


class LeRobotController:
    """A checkpoint of LeRobot that predicts chunks from the present observation alone, with its own processors.

    folder: a `pretrained_model` of `lerobot-train`. n_action_steps: how many of each chunk are executed; None: as the
        checkpoint says. Every robot's chunk begins with its episode, so all plan at the same steps.
    Raises ConfigError for a policy that has no `chunk_size` or looks at several observations, which nobody keeps here.
    """

    def __init__(self, folder: Path, n_action_steps: int | None = None, device: str = "cpu") -> None:
        from lerobot.configs import PreTrainedConfig
        from lerobot.policies.factory import get_policy_class, make_pre_post_processors

        config = PreTrainedConfig.from_pretrained(folder)
        if not hasattr(config, "chunk_size") or config.n_obs_steps != 1:
            raise ConfigError(
                "a policy of LeRobot that predicts chunks (chunk_size) from one observation (n_obs_steps=1) is needed, "
                f"such as act; {folder} holds one of type {config.type!r} with n_obs_steps="
                f"{config.n_obs_steps} and {'a' if hasattr(config, 'chunk_size') else 'no'} chunk_size."
            )
        config.device, config.pretrained_path = device, folder
        self.policy = get_policy_class(config.type).from_pretrained(folder, config=config)
        self.policy.eval()
        moved = {"device_processor": {"device": device}}
        self._before, self._after = make_pre_post_processors(
            config, str(folder), preprocessor_overrides=moved, postprocessor_overrides=moved
        )
        self.n_action_steps = config.n_action_steps if n_action_steps is None else n_action_steps
        if not 1 <= self.n_action_steps <= config.chunk_size:
            raise ConfigError(
                f"n_action_steps must lie in 1 … {config.chunk_size}, the chunk of {folder}, got {self.n_action_steps}."
            )
        self._instructions: list[str] = []
        self._queue: list[Tensor] = []

    def begin(self, envs: Sequence[gym.Env], seeds: Sequence[int]) -> list[str]:
        """See `Controller`."""
        self.policy.reset()
        self._queue, self._instructions = [], [attribute(env, "task") for env in envs]
        return list(self._instructions)

    def act(self, observations: Sequence[RawObservation]) -> np.ndarray:
        """See `Controller`."""
        if not self._queue:
            self._queue = list(self._chunk(observations).transpose(0, 1)[: self.n_action_steps])
        return self._queue.pop(0).float().cpu().numpy()

    def keep(self, rows: Sequence[int]) -> None:
        """See `Controller`."""
        self._instructions = [self._instructions[row] for row in rows]
        self._queue = [actions[list(rows)] for actions in self._queue]

    def foreseen(self, row: int) -> dict[str, np.ndarray]:
        """See `Controller`; nothing is foreseen."""
        return {}

    @torch.no_grad()
    def _chunk(self, observations: Sequence[RawObservation]) -> Tensor:
        """Actions `(B, L, D)` in physical units, from observations as `lerobot-eval` gives them."""
        pictures = {key: to_unit(seen) for key, seen in camera_images(observations).items()}
        states = np.stack([seen["agent_pos"] for seen in observations]).astype(np.float32)
        seen: dict[str, Any] = {
            **pictures,
            "observation.state": torch.from_numpy(states),
            "task": self._instructions,
        }
        return self._after(self.policy.predict_action_chunk(self._before(seen)))
