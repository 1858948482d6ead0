"""Rows of requests that fit into one batch, and their chunks. Runs in the worker thread; keeps nothing.

Legend: `B` requests, `h`/`w` a camera's own pixels, `S` state dims, `L` chunk steps, `D` action dims.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from vla_mot.infer.policy import Policy
from vla_mot.infer.server.errors import RequestError
from vla_mot.robots.embodiment import Embodiment


@dataclass(frozen=True)
class Row:
    """One request, checked. past, present: camera → `(h, w, 3)` uint8. state: `(S,)` float32.

    seed, call: key the noise, whoever else is in the batch.
    """

    robot: str
    past: Mapping[str, np.ndarray]
    present: Mapping[str, np.ndarray]
    state: np.ndarray
    instruction: str
    seed: int
    call: int

    @property
    def kind(self) -> tuple[object, ...]:
        """Rows of one kind fit into one batch: the same robot, pictures of the same sizes."""
        return (self.robot, *((key, picture.shape) for key, picture in sorted(self.present.items())))


class Predictor:
    """Answers rows of one kind with the policies of the robots, name → policy."""

    def __init__(self, policies: Mapping[str, Policy]) -> None:
        self._policies = dict(policies)

    def predict(self, rows: Sequence[Row]) -> list[np.ndarray]:
        """One chunk `(L, D)` float32 per row, absolute actions in physical units.

        Raises RequestError where an action is not finite: no robot may get it.
        """
        policy = self._policies[rows[0].robot]
        images = {key: _pictures(rows, key) for key in rows[0].present}
        state = torch.from_numpy(np.stack([row.state for row in rows]))
        noise = torch.cat([policy.noise([row.seed], row.call) for row in rows])
        chunk = policy.predict(images, state, [row.instruction for row in rows], noise)
        actions = chunk.actions.float().cpu().numpy()
        if not np.isfinite(actions).all():
            raise RequestError(
                "failed", "the policy's actions are not finite; nothing was sent to the robot."
            )
        return list(actions)

    def warm_up(self) -> None:
        """Predict once for every robot, from black pictures, so that the first client does not wait for it."""
        for name, policy in self._policies.items():
            self.predict([_black(name, policy.robot.embodiment, policy.spec.model.view_size)])


def _pictures(rows: Sequence[Row], key: str) -> torch.Tensor:
    """`(B, 2, 3, h, w)` uint8, frames t − m and t."""
    pairs = np.stack([(row.past[key], row.present[key]) for row in rows])
    return torch.from_numpy(pairs).movedim(-1, 2)


def _black(name: str, robot: Embodiment, size: tuple[int, int]) -> Row:
    pictures = {key: np.zeros((*size, 3), np.uint8) for _, key in robot.present_cameras}
    return Row(name, pictures, pictures, np.zeros(robot.state_dim, np.float32), "wait", seed=0, call=0)
