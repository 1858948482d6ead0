"""One action per control step from chunks that a server predicts: what a simulator's or a robot's loop needs.

Legend: `h`/`w` a camera's own pixels, `S` state dims, `D` action dims, `m` the history offset in control steps,
0 where the policy reads no history.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from .client import Client


class Driver:
    """Asks for a chunk when the executed part of the last one is over, and sends the frames that the next will need.

    client: of the server. robot: one of those that it serves; needed where there are several. execute: steps of each
    chunk that are executed; None: as many as the policy says.
    fps: control steps per second, which the loop must keep: `act` returns at once between two chunks. None: the policy
    states none, and the robot knows.
    step: control steps of this episode so far. reply: the server's last one, whose `history` says which frame it used.

    Frames are the server's to keep: of an episode in which the connection broke, it knows what came since.
    Raises ValueError for a robot that is not served, or more steps than a chunk has.
    """

    def __init__(self, client: Client, *, robot: str | None = None, execute: int | None = None) -> None:
        self.client = client
        told = _served(client.metadata["robots"], robot)
        self._robot = {} if robot is None else {"embodiment": robot}
        self.cameras: list[str] = told["cameras"]
        self.fps: float | None = told["fps"]
        self.execute = told["n_action_steps"] if execute is None else execute
        self.history_steps: int = told["history_steps"]
        if not 1 <= self.execute <= told["chunk_size"]:
            raise ValueError(f"execute must lie in 1 … {told['chunk_size']}, a chunk's steps; got {execute}.")
        self.step = 0
        self.reply: dict[str, Any] = {}

    def reset(self, seed: int | None = None) -> None:
        """An episode begins. seed: of its noise; None: the server's own."""
        self.client.reset(seed)
        self.step, self.reply = 0, {}

    @property
    def asks(self) -> bool:
        """Whether a chunk is asked for at this step."""
        return self.step % self.execute == 0

    @property
    def looks(self) -> bool:
        """Whether this step's pictures are needed: for a chunk now, or as the history (m steps on) of one."""
        return self.asks or (self.step + self.history_steps) % self.execute == 0

    def act(
        self, pictures: Mapping[str, np.ndarray] | None, state: np.ndarray | None, task: str
    ) -> np.ndarray:
        """The action `(D,)` of this step, absolute and in physical units.

        pictures: camera → `(h, w, 3)` uint8; may be None in a step that `looks` at nothing. state: `(S,)` in physical
        units; may be None in one that does not ask. task: the instruction.
        Raises ValueError without what the step needs, ServerError and ConnectionLostError as `Client` does.
        """
        if self.looks:
            if pictures is None or (self.asks and state is None):
                raise ValueError(f"step {self.step} needs pictures{' and the state' if self.asks else ''}.")
            self._send(dict(pictures), state, task)
        action: np.ndarray = self.reply["actions"][self.step % self.execute]
        self.step += 1
        return action.copy()

    def _send(self, pictures: dict[str, Any], state: np.ndarray | None, task: str) -> None:
        told = {**pictures, **self._robot, "step": self.step}
        if self.asks:
            self.reply = self.client.infer({**told, "observation.state": state, "prompt": task})
        else:
            self.client.remember(told)


def _served(robots: Mapping[str, Any], robot: str | None) -> Mapping[str, Any]:
    """What the server told of the robot that is driven."""
    if robot is None and len(robots) == 1:
        return next(iter(robots.values()))
    if robot is None or robot not in robots:
        raise ValueError(
            f"the server drives {', '.join(robots)}; say robot=… with one of them, got {robot!r}."
        )
    return robots[robot]
