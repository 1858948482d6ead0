"""Rows of requests that fit into one batch, and their chunks. Runs in the worker thread; keeps nothing.

Legend: `B` requests, `h`/`w` a camera's own pixels, `S` state dims, `L` chunk steps, `D`/`A` real and padded action
dims, `R` steps left over.
"""

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from vla_mot.flow.solvers import Guide
from vla_mot.infer.policy import Policy
from vla_mot.infer.rtc import continue_chunk
from vla_mot.infer.server.config import ServerConfig
from vla_mot.infer.server.errors import RequestError
from vla_mot.robots.embodiment import Embodiment
from vla_mot.robots.images import resize_with_pad, to_unit


@dataclass(frozen=True)
class Row:
    """One request, checked. past, present: camera → `(h, w, 3)` uint8. state: `(S,)` float32.

    seed, call: key the noise, whoever else is in the batch. episode: like no other one's.
    left_over: `(R, D)` of the last chunk, with which this one is made to go on. delay: how many of these steps will
    have been executed when it arrives.
    """

    robot: str
    past: Mapping[str, np.ndarray]
    present: Mapping[str, np.ndarray]
    state: np.ndarray
    instruction: str
    seed: int
    call: int
    episode: Hashable = None
    left_over: np.ndarray | None = None
    delay: int = 0

    @property
    def kind(self) -> tuple[object, ...]:
        """Rows of one kind fit into one batch: the same robot, pictures of the same sizes, as much left over."""
        pictures = tuple((key, picture.shape) for key, picture in sorted(self.present.items()))
        left = None if self.left_over is None else (len(self.left_over), self.delay)
        return self.robot, pictures, left


class Predictor:
    """Answers rows of one kind with the policies of the robots, name → policy."""

    def __init__(self, policies: Mapping[str, Policy], config: ServerConfig) -> None:
        self._policies, self._config = dict(policies), config

    def predict(self, rows: Sequence[Row]) -> list[np.ndarray]:
        """One chunk `(L, D)` float32 per row, absolute actions in physical units.

        Raises RequestError where an action is not finite: no robot may get it.
        """
        policy = self._policies[rows[0].robot]
        filled = self._filled(policy, rows)
        images = {key: _pictures(policy, filled, key) for key in rows[0].present}
        state = torch.from_numpy(np.stack([row.state for row in filled]))
        noise = torch.cat([policy.noise([row.seed], row.call) for row in filled])
        noise = noise.to(policy.device, non_blocking=True)
        guide = self._guide(policy, filled, state, noise)
        words, episodes = [row.instruction for row in filled], tuple(row.episode for row in filled)
        chunk = policy.predict(images, state, words, noise, guide, session=episodes)
        actions = chunk.actions[: len(rows)].float().cpu().numpy()
        if not np.isfinite(actions).all():
            raise RequestError(
                "failed", "the policy's actions are not finite; nothing was sent to the robot."
            )
        return list(actions)

    def warm_up(self) -> None:
        """Predict once for every robot, from black pictures, so that the first client does not wait for it.

        Behind an engine: for every size of a batch, since each has programs of its own.
        """
        for name, policy in self._policies.items():
            sizes = (1,) if policy.engine is None else self._config.batch_sizes
            for instruction in self._config.instructions or ("wait",):
                black = _black(name, policy.robot.embodiment, policy.spec.model.view_size, instruction)
                for size in sizes:
                    self.predict([black] * size)

    def _filled(self, policy: Policy, rows: Sequence[Row]) -> list[Row]:
        """The rows, and the last one again up to a size that an engine has programs for."""
        size = len(rows)
        if policy.engine is not None:
            size = next(known for known in self._config.batch_sizes if known >= size)
        return [*rows, *[rows[-1]] * (size - len(rows))]

    def _guide(self, policy: Policy, rows: Sequence[Row], state: Tensor, noise: Tensor) -> Guide | None:
        """What makes chunks go on with those before, where there are such."""
        kept = [row.left_over for row in rows if row.left_over is not None]
        if not kept:
            return None
        left_over = torch.from_numpy(np.stack(kept))
        return continue_chunk(self._config.rtc, left_over, rows[0].delay, state, noise, policy.processor)


def _pictures(policy: Policy, rows: Sequence[Row], key: str) -> Tensor:
    """`(B, 2, 3, H, W)` of the model's size, frames t − m and t: uint8 that had it, float32 in [0, 1] otherwise.

    Others are resized one by one, to what the policy would make of them: a batch of large ones is gigabytes in floats.
    """
    size = policy.spec.model.view_size
    pairs = [(row.past[key], row.present[key]) for row in rows]
    if rows[0].present[key].shape[:2] == size:
        return torch.from_numpy(np.stack(pairs)).movedim(-1, 2)
    return torch.stack([torch.stack([_fitted(policy, picture, size) for picture in pair]) for pair in pairs])


def _fitted(policy: Policy, picture: np.ndarray, size: tuple[int, int]) -> Tensor:
    there = torch.from_numpy(np.array(picture)).movedim(-1, 0).to(policy.device)
    return resize_with_pad(to_unit(there), *size)


def _black(name: str, robot: Embodiment, size: tuple[int, int], instruction: str) -> Row:
    pictures = {key: np.zeros((*size, 3), np.uint8) for _, key in robot.present_cameras}
    return Row(name, pictures, pictures, np.zeros(robot.state_dim, np.float32), instruction, 0, 0)
