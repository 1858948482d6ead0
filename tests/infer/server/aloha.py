"""A policy for RoboTwin's robot, and a task that has RoboTwin's methods and the layout of its observations."""

from typing import Any

import numpy as np

from tests.infer.tiny_policy import known_robot
from tests.model.tiny import tiny_model
from vla_mot.hub.spec import PolicySpec, SamplerConfig
from vla_mot.infer.policy import Policy

CHUNK, EXECUTED, PAST, JOINTS = 50, 30, 15, 14
INSTRUCTION = "beat the block with the hammer"


def aloha_policy(action_mode: str = "delta") -> Policy:
    """Chunks of 50, of which 30 are executed; history 15 frames back, as the released policies have it."""
    model = tiny_model(chunk_size=CHUNK, offset_frames=PAST, max_state_dim=JOINTS, max_action_dim=JOINTS)
    robot = known_robot("aloha", CHUNK, action_mode)
    return Policy(model, PolicySpec(model.config, (robot,), SamplerConfig(2, EXECUTED)))


class ToyTask:
    """Every step looks unlike any other, and the arms are wherever the last action put them.

    taken: the actions. rendered: steps at which pictures were asked for.
    """

    def __init__(self, episode: int = 0, succeeds_at: int | None = None) -> None:
        self.episode, self.succeeds_at = episode, succeeds_at
        self.taken: list[np.ndarray] = []
        self.rendered: list[int] = []
        self.eval_success = False

    def get_obs(self) -> dict[str, Any]:
        self.rendered.append(len(self.taken))
        return self.look(len(self.taken), self.joints)

    def look(self, step: int, joints: np.ndarray) -> dict[str, Any]:
        cameras = ("head_camera", "left_camera", "right_camera")
        random = np.random.default_rng((self.episode, step))
        seen = {name: {"rgb": random.integers(0, 256, (24, 32, 3), np.uint8)} for name in cameras}
        return {"observation": seen, "joint_action": {"vector": joints}, "endpose": {}}

    @property
    def joints(self) -> np.ndarray:
        start = np.linspace(-0.5, 0.5, JOINTS) * (1 + self.episode)
        return self.taken[-1] if self.taken else start

    def get_instruction(self) -> str:
        return INSTRUCTION

    def take_action(self, action: np.ndarray, action_type: str = "qpos") -> None:
        assert action.shape == (JOINTS,) and action_type == "qpos"
        self.taken.append(action)
        self.eval_success = len(self.taken) == self.succeeds_at
