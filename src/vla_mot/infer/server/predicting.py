"""Rows of requests that fit into one batch, and their chunks. Runs in the worker thread; keeps nothing.

Legend: `B` requests, `h`/`w` a camera's own pixels, `S` state dims, `L` chunk steps, `D`/`A` real and padded action
dims, `R` steps left over.
"""

import itertools
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from vla_mot.flow.solvers import Guide
from vla_mot.infer.latents import FrameLatents
from vla_mot.infer.policy import Policy
from vla_mot.infer.rtc import continue_chunk
from vla_mot.infer.server.config import ServerConfig
from vla_mot.infer.server.errors import RequestError
from vla_mot.robots.embodiment import Embodiment
from vla_mot.robots.images import resize_with_pad, to_unit


@dataclass(frozen=True)
class Known:
    """Where latents of a row's two frames are, or will be: those of its session, and the frames' control steps."""

    latents: FrameLatents
    past: int
    present: int


@dataclass(frozen=True)
class Row:
    """One request, checked. past, present: camera → `(h, w, 3)` uint8. state: `(S,)` float32.

    seed, call: key the noise, whoever else is in the batch. episode: like no other one's.
    left_over: `(R, D)` of the last chunk, with which this one is made to go on. delay: how many of these steps will
    have been executed when it arrives. known: None where the frames' latents are not remembered.
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
    known: Known | None = None

    @property
    def kind(self) -> tuple[object, ...]:
        """Rows of one kind fit into one batch: robot, sizes of the pictures, what is left over, latents or none."""
        pictures = tuple((key, picture.shape) for key, picture in sorted(self.present.items()))
        left = None if self.left_over is None else (len(self.left_over), self.delay)
        return self.robot, pictures, left, self.known is None


@dataclass(frozen=True)
class Predicted:
    """actions: `(L, D)` float32, absolute, in physical units. understanding_age: see `ActionChunk`."""

    actions: np.ndarray
    understanding_age: int


class Predictor:
    """Answers rows of one kind with the policies of the robots, name → policy."""

    def __init__(self, policies: Mapping[str, Policy], config: ServerConfig) -> None:
        self._policies, self._config = dict(policies), config

    def predict(self, rows: Sequence[Row]) -> list[Predicted]:
        """One chunk per row.

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
        latents = _latents(policy, filled, images)
        chunk = policy.predict(images, state, words, noise, guide, session=episodes, latents=latents)
        actions = chunk.actions[: len(rows)].float().cpu().numpy()
        if not np.isfinite(actions).all():
            raise RequestError(
                "failed", "the policy's actions are not finite; nothing was sent to the robot."
            )
        return [Predicted(action, chunk.understanding_age) for action in actions]

    def encode(self, robot: str, latents: FrameLatents, step: int, frame: Mapping[str, np.ndarray]) -> None:
        """Have the latents of a session's frame ready, for a later row."""
        policy = self._policies[robot]
        latents.of(policy, step, {key: _picture(policy, array)[None] for key, array in frame.items()})

    def warm_up(self) -> None:
        """Predict once for every robot, from black pictures, so that the first client does not wait for it.

        Behind an engine: for every size of a batch, and for bytes and floats (see `_picture`), since each has programs
        of its own.
        """
        for name, policy in self._policies.items():
            (height, width), engine = policy.spec.model.view_size, policy.engine is not None
            pictures = ((height, width), (2 * height, 2 * width)) if engine else ((height, width),)
            sizes = self._config.batch_sizes if engine else (1,)
            told = self._config.instructions or ("wait",)
            for instruction, pixels, size in itertools.product(told, pictures, sizes):
                black = _black(name, policy.robot.embodiment, pixels, instruction)
                self.predict([black] * size)
                if self._config.remember_latents:
                    self.predict([replace(black, known=Known(FrameLatents(), 0, 1))] * size)

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


def _latents(policy: Policy, rows: Sequence[Row], images: Mapping[str, Tensor]) -> Tensor | None:
    """`(B, V, 2, C, h, w)` of `images`, where rows remember them: what was encoded before is not encoded again."""
    found = []
    for i, row in enumerate(rows):
        if row.known is None:
            return None
        past, present = ({key: pair[i : i + 1, time] for key, pair in images.items()} for time in (0, 1))
        found.append(row.known.latents.pair(policy, (row.known.past, past), (row.known.present, present)))
    return torch.cat(found)


def _pictures(policy: Policy, rows: Sequence[Row], key: str) -> Tensor:
    """`(B, 2, 3, H, W)` of the model's size, frames t − m and t."""
    pairs = [(row.past[key], row.present[key]) for row in rows]
    return torch.stack([torch.stack([_picture(policy, picture) for picture in pair]) for pair in pairs])


def _picture(policy: Policy, picture: np.ndarray) -> Tensor:
    """`(h, w, 3)` → `(3, H, W)` of the model's size: uint8 if it had that, float32 in [0, 1] otherwise.

    Others are resized one by one, to what the policy would make of them: a batch of large ones is gigabytes in floats.
    """
    there, size = torch.from_numpy(np.array(picture)).movedim(-1, 0), policy.spec.model.view_size
    return there if there.shape[1:] == size else resize_with_pad(to_unit(there.to(policy.device)), *size)


def _black(name: str, robot: Embodiment, size: tuple[int, int], instruction: str) -> Row:
    pictures = {key: np.zeros((*size, 3), np.uint8) for _, key in robot.present_cameras}
    return Row(name, pictures, pictures, np.zeros(robot.state_dim, np.float32), instruction, 0, 0)
