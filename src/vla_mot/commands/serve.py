"""`vla-mot serve`: a policy behind a websocket."""

import asyncio
import logging
import os
import sys
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from rich.text import Text

from vla_mot.commands.console import console, show_library_log
from vla_mot.commands.devices import require_device
from vla_mot.commands.engines import EAGER, described, with_engine
from vla_mot.commands.opening import Opening
from vla_mot.commands.repositories import locate
from vla_mot.commands.settings import section
from vla_mot.errors import ConfigError
from vla_mot.flow.solvers import Solver
from vla_mot.hub.describe import sampling
from vla_mot.infer.policy import Policy
from vla_mot.infer.server.config import ServerConfig
from vla_mot.infer.server.server import PolicyServer
from vla_mot.options import fit

Dtype = Literal["float32", "bfloat16"]
_UNANSWERED = 1  # the exit code


@dataclass(frozen=True)
class ServeConfig(ServerConfig, Opening):
    """See conf/serve.yaml."""

    robot: str | None = None
    device: str = "cpu"
    dtype: Dtype | None = None
    num_steps: int | None = None
    solver: Solver | None = None
    n_action_steps: int | None = None
    engine: Mapping[str, Any] = field(default_factory=lambda: {"kind": EAGER})

    def __post_init__(self) -> None:
        super().__post_init__()
        require_device("device", self.device)
        if self.dtype is not None:
            fit(Dtype, "dtype", self.dtype)
        if self.engine.get("understanding_ahead", False):
            raise ConfigError(
                "engine.understanding_ahead is for a loop beside which there is time (Session, Runner); a server "
                "answers whoever comes next. Leave it out."
            )


def run(config: dict[str, Any], overrides: list[str]) -> None:
    """The command; ends with SIGTERM or SIGINT, when what came before was answered.

    The process ends with code 1 where not all of it could be answered in `drain_seconds`.
    """
    show_library_log()
    settings = section(ServeConfig, "", config)
    server = PolicyServer(settings)  # refuses an unsafe address before the weights are read
    policies = open_policies(settings)

    def ready(address: str) -> None:
        for name, policy in policies.items():
            how = f"{sampling(policy.spec.sampler)}, engine {described(settings.engine)}, on {policy.device}"
            console.print(Text.assemble((name, "cyan"), f"   {policy.robot}, {how}"))
        console.print(f"serving on {address}; stop with Ctrl-C")

    answered = asyncio.run(server.run(policies, ready, signals=True))
    leave(answered, server.busy)


def leave(answered: bool, busy: bool) -> None:
    """End the process with code 1 where requests went unanswered, and without the worker where it is still busy."""
    if not busy and answered:
        return
    logging.shutdown()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0 if answered else _UNANSWERED)  # Python's own exit waits for the worker, however long it takes


def open_policies(settings: ServeConfig) -> dict[str, Policy]:
    """The robots that are served, by name; they share one model. Raises CheckpointError, ConfigError."""
    policy = Policy.from_pretrained(
        locate(settings.checkpoint),
        embodiment=settings.robot,
        action_mode=settings.action_mode,
        device=settings.device,
        dtype=None if settings.dtype is None else getattr(torch, settings.dtype),
        revision=settings.revision,
        architecture=settings.architecture,
        embodiments=settings.embodiments,
    ).with_sampler(
        num_steps=settings.num_steps, n_action_steps=settings.n_action_steps, solver=settings.solver
    )
    policy = with_engine(policy, settings.engine)
    asked = [
        robot
        for robot in policy.spec.robots
        if settings.robot in (None, robot.embodiment.name, *robot.embodiment.aliases)
        and settings.action_mode in (None, robot.action_mode)
    ]
    often = Counter(robot.embodiment.name for robot in asked)
    return {
        robot.embodiment.name if often[robot.embodiment.name] == 1 else str(robot): policy.for_robot(
            robot.embodiment.name, robot.action_mode
        )
        for robot in asked
    }
