"""Ranks that train one model together, each a process of its own, told from outside when it is their turn.

Every number of draws has its own, so that none pays for what another left behind: compiled programs above all, which
torch generalises to all shapes that a process has seen.
"""

import multiprocessing
import os
import socket
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any

import torch

from vla_mot.train.world import join


class Team:
    """Processes that hold what `make(world, *arguments)` returns, whose methods can be called.

    ranks: how many; device: on which they compute; they share the cores of this machine.
    """

    def __init__(self, ranks: int, device: str, make: Callable[..., Any], *arguments: Any) -> None:
        context, port = multiprocessing.get_context("spawn"), _free_port()
        self._ends: list[Connection] = []
        for rank in range(ranks):
            mine, its = context.Pipe()
            told = (its, _environment(rank, ranks, port), device, make, arguments)
            context.Process(target=_work, args=told, daemon=True).start()
            its.close()  # so that its end is seen here
            self._ends.append(mine)

    def wait(self) -> None:
        """Until all processes have made what they hold; to be called once, before they are asked anything."""
        self._answers()

    def ask(self, method: str, *arguments: Any) -> Any:
        """Call a method in all ranks; returns what the main one does. Raises RuntimeError when a process died."""
        for end in self._ends:
            end.send((method, arguments))
        return self._answers()[0]

    def end(self) -> None:
        """Let the processes go."""
        for end in self._ends:
            end.send(None)
            end.close()

    def _answers(self) -> list[Any]:
        try:
            return [end.recv() for end in self._ends]
        except EOFError as error:
            raise RuntimeError("a process that trains died; what it said stands above.") from error


def _work(
    end: Connection, environment: dict[str, str], device: str, make: Callable[..., Any], arguments: tuple
) -> None:
    os.environ |= environment
    torch.set_num_threads(max(1, torch.get_num_threads() // int(environment["WORLD_SIZE"])))
    with join(device, None) as world:
        member = make(world, *arguments)
        end.send(None)
        while (asked := end.recv()) is not None:
            method, given = asked
            end.send(getattr(member, method)(*given))


def _environment(rank: int, ranks: int, port: int) -> dict[str, str]:
    """As torchrun tells its processes."""
    numbers = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": ranks, "MASTER_PORT": port}
    return {name: str(value) for name, value in numbers.items()} | {"MASTER_ADDR": "127.0.0.1"}


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
