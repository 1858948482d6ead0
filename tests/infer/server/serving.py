"""A real server on a thread of its own, and observations for the tiny robot."""

import asyncio
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np

from tests.infer.tiny_policy import GRIPPER, HEAD, frames, states
from vla_mot.infer.policy import Policy
from vla_mot.infer.server.config import ServerConfig
from vla_mot.infer.server.server import PolicyServer

TASK = "pick the red block"


class Running:
    """A server that listens. `close` drains it and waits for its end."""

    def __init__(self, policies: Mapping[str, Policy], config: ServerConfig) -> None:
        self._listening = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._run(policies, config)))
        self._thread.start()
        assert self._listening.wait(30)

    async def _run(self, policies: Mapping[str, Policy], config: ServerConfig) -> None:
        self._loop = asyncio.get_running_loop()
        self.server = PolicyServer(config)
        try:
            await self.server.run(policies, self._ready)
        finally:
            self._listening.set()

    def _ready(self, address: str) -> None:
        self.address, self.port = address, int(address.rsplit(":", 1)[1])
        self._listening.set()

    def stop(self) -> None:
        if self._thread.is_alive():
            self._loop.call_soon_threadsafe(self.server.stop)

    def close(self) -> None:
        self.stop()
        self._thread.join(30)
        assert not self._thread.is_alive()


@contextmanager
def serving(policy: Policy | Mapping[str, Policy], **config: Any) -> Iterator[Running]:
    policies = policy if isinstance(policy, Mapping) else {"conveyor": policy}
    running = Running(policies, ServerConfig(**({"port": 0, "warm_up": False} | config)))
    try:
        yield running
    finally:
        running.close()


def observation(row: int = 0, step: int = 0, **more: Any) -> dict[str, Any]:
    """What robot `row` sees at a control step, as a client sends it; without `step` in it."""
    pictures = {key: image[row].movedim(0, -1).numpy() for key, image in frames(row + 1, step).items()}
    state = states(row + 1, step)[row].numpy()
    return {**pictures, "observation.state": state, "prompt": TASK, **more}


def small(side: int = 8, **more: Any) -> dict[str, Any]:
    """An observation of few bytes."""
    picture = np.full((side, side, 3), 7, np.uint8)
    return {
        HEAD: picture,
        GRIPPER: picture,
        "observation.state": np.zeros(4, np.float32),
        "prompt": TASK,
        **more,
    }
