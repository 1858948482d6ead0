"""RoboTwin 2.0's policy interface (`get_model`, `eval`, `reset_model`) around a policy that `vla-mot serve` serves.

RoboTwin's evaluation runs in a Python environment of its own and imports `policy/<name>`; these three are all that it
asks of that. A chunk is predicted from frames t − m and t of the head and both wrist cameras (in the first m steps of
an episode the first frame is the history), part of it is executed, and grippers are opened or closed. The policy's
robot is `aloha`: left joints 6, left gripper, right joints 6, right gripper. Where its joints are deltas the server has
added the joint positions at the chunk's start already.
"""

import os
from collections.abc import Mapping
from typing import Any

import numpy as np

from .client import Client
from .driver import Driver

CAMERAS = {
    "head_camera": "observation.images.cam_high",
    "left_camera": "observation.images.cam_left_wrist",
    "right_camera": "observation.images.cam_right_wrist",
}
"""RoboTwin's cameras → the policy's."""
GRIPPERS = (6, 13)
"""Action dimensions of the grippers: 1 is open, 0 is closed."""


class RoboTwinPolicy:
    """What RoboTwin calls a model: a connection, and where the episode stands.

    host, port: of the server; its token is taken from the environment variable VLA_MOT_TOKEN. robot: where the server
    drives several. execute: steps of each chunk that are executed; 30 of 50 as the released policies were evaluated.
    gripper_threshold: above it a gripper is opened, else closed; None: as it was predicted. seed: of the first
    episode's noise; each further one takes the next number.
    """

    def __init__(
        self,
        host: str = "127.0.0.1",
        port: int = 8000,
        *,
        robot: str | None = None,
        execute: int = 30,
        gripper_threshold: float | None = 0.5,
        seed: int = 0,
    ) -> None:
        client = Client(host, port, token=os.environ.get("VLA_MOT_TOKEN"))
        self.driver = Driver(client, robot=robot, execute=execute)
        self._threshold = gripper_threshold
        self._seed = seed
        self.reset()

    def reset(self) -> None:
        """An episode begins; the one before counts if a step of it was made."""
        seed = self._seed + (self.driver.step > 0)
        self.driver.reset(seed)
        self._seed = seed

    def act(self, observation: Mapping[str, Any] | None, task: str) -> np.ndarray:
        """The joint positions and grippers `(14,)` of one control step.

        observation: as `TASK_ENV.get_obs()` gives it; may be None where `driver.looks` is False.
        """
        pictures = state = None
        if observation is not None:
            seen = observation["observation"]
            pictures = {ours: _picture(seen[theirs]["rgb"]) for theirs, ours in CAMERAS.items()}
            state = np.asarray(observation["joint_action"]["vector"], np.float32)
        action = self.driver.act(pictures, state, task)
        if self._threshold is not None:
            action[list(GRIPPERS)] = action[list(GRIPPERS)] > self._threshold
        return action


def get_model(usr_args: Mapping[str, Any]) -> RoboTwinPolicy:
    """Connect. usr_args: `deploy_policy.yml` with what the command line overrides; keys that are not ours are left."""
    ours = ("host", "port", "robot", "execute", "gripper_threshold")
    given = {key: usr_args[key] for key in ours if key in usr_args}
    return RoboTwinPolicy(**given, seed=int(usr_args.get("noise_seed", 0)))


def eval(TASK_ENV: Any, model: RoboTwinPolicy, observation: Mapping[str, Any]) -> None:
    """Execute what is executed of one chunk. RoboTwin calls it until the episode succeeded or its steps are over."""
    task = TASK_ENV.get_instruction()
    seen: Mapping[str, Any] | None = observation
    for _ in range(model.driver.execute):
        if seen is None and model.driver.looks:  # rendering costs most of the time
            seen = TASK_ENV.get_obs()
        TASK_ENV.take_action(model.act(seen, task))
        seen = None
        if getattr(TASK_ENV, "eval_success", False):
            return


def reset_model(model: RoboTwinPolicy) -> None:
    """Between two episodes."""
    model.reset()


def _picture(rgb: Any) -> np.ndarray:
    return np.ascontiguousarray(np.asarray(rgb, np.uint8)[..., :3])
