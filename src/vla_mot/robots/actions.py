"""Delta actions: a chunk relative to the state at its start, on the dimensions where that is wanted.

Legend: `B` batch, `L` chunk steps, `D` real action dims, `S` real state dims.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from vla_mot.errors import ConfigError, unknown_name

ABSOLUTE = "abs"
DELTA = "delta"


def require_action_mode(name: str) -> None:
    """Raise ConfigError, with the nearest known one, unless `name` is an action mode."""
    if name not in (ABSOLUTE, DELTA):
        raise ConfigError(unknown_name("action mode", name, (ABSOLUTE, DELTA)))


def _offset(state: Tensor, delta_mask: Sequence[bool]) -> Tensor:
    """`(..., S)` → `(..., 1, D)`: the state where the action is a delta, zero elsewhere (grippers)."""
    mask = torch.tensor(delta_mask, dtype=torch.bool).to(state.device, non_blocking=True)
    width = mask.numel()
    aligned = torch.nn.functional.pad(state, (0, max(0, width - state.shape[-1])))[..., :width]
    return torch.where(mask, aligned, 0.0).unsqueeze(-2)


def to_delta(actions: Tensor, state: Tensor, delta_mask: Sequence[bool]) -> Tensor:
    """Subtract the state at the chunk's start: `(..., L, D)` absolute and `(..., S)` → `(..., L, D)`."""
    return actions - _offset(state, delta_mask)


def to_absolute(actions: Tensor, state: Tensor, delta_mask: Sequence[bool]) -> Tensor:
    """The inverse of `to_delta`."""
    return actions + _offset(state, delta_mask)
