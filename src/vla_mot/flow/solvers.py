"""From noise to actions: integration of the velocity dx/ds from s = 1 to s = 0 in equal steps.

| solver | velocities per step | order |
|---|---|---|
| `euler` | 1 | 1, as the released checkpoints sample |
| `midpoint` | 2 | 2 |
| `heun` | 2, the last one at s = 0, where no training sample lies | 2 |

Legend: `B` batch, `L` chunk steps, `A` action dims, `E` evaluations of the velocity.
"""

from collections.abc import Callable
from typing import Literal, get_args

import torch
from torch import Tensor

from vla_mot.errors import ConfigError, unknown_name

Solver = Literal["euler", "midpoint", "heun"]
Velocity = Callable[[Tensor, Tensor], Tensor]
"""(x `(B, L, A)`, noise level `(B,)`) → velocity `(B, L, A)`."""
Guide = Callable[[Velocity], Velocity]
"""What bends a flow on its way, for instance towards actions that are already being executed."""


def integrate(velocity_at: Velocity, noise: Tensor, num_steps: int, solver: Solver = "euler") -> Tensor:
    """Carry `(B, L, A)` noise to actions in `num_steps` equal steps.

    The level is decremented by 1/K in float32 at each step, as in the released checkpoints (the shortest period turns
    the rounding of 1 − k/K into 4e-5 of velocity). Raises ConfigError without steps or for an unknown solver.
    """
    if num_steps < 1:
        raise ConfigError(f"the sampler needs at least one step, got {num_steps}.")
    if solver not in get_args(Solver):
        raise ConfigError(unknown_name("sampler.solver", solver, get_args(Solver)))
    # Filled on the device: a number copied there would make the host wait.
    step = torch.full((), -1.0 / num_steps, dtype=torch.float32, device=noise.device)
    level = torch.ones((), dtype=torch.float32, device=noise.device)
    x, h = noise, step.to(noise.dtype)
    for _ in range(num_steps):
        x = x + h * _slope(velocity_at, x, level, step, solver)
        level = level + step
    return x


def _slope(velocity_at: Velocity, x: Tensor, level: Tensor, step: Tensor, solver: Solver) -> Tensor:
    """The velocity that carries `x` over one step."""
    rows, h = x.shape[0], step.to(x.dtype)
    first = velocity_at(x, level.expand(rows))
    if solver == "midpoint":
        return velocity_at(x + h / 2 * first, (level + step / 2).expand(rows))
    if solver == "heun":
        return (first + velocity_at(x + h * first, (level + step).expand(rows))) / 2
    return first


def evaluated_levels(num_steps: int, solver: Solver, device: torch.device | str = "cpu") -> Tensor:
    """`(E,)` float32: at which noise levels `integrate` asks for the velocity, in the order of asking."""
    asked: list[Tensor] = []

    def ask(x: Tensor, level: Tensor) -> Tensor:
        asked.append(level[0])
        return x

    integrate(ask, torch.zeros(1, 1, 1, device=device), num_steps, solver)
    return torch.stack(asked)
