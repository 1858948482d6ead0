"""The flow that carries noise to actions.

    x_s = s · noise + (1 − s) · action          s = 1 is noise, s = 0 is data
    u   = noise − action                        the target velocity, dx/ds
    s   = 0.001 + 0.999 · Beta(α, 1)            noisy levels are favoured for α > 1

Legend: `B` batch, `L` chunk steps, `A` action dims, `D` embedding width.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from vla_mot.errors import ConfigError


@dataclass(frozen=True)
class NoiseLevelConfig:
    """s = offset + scale · Beta(alpha, 1). The released checkpoints use 1.5, 0.001, 0.999."""

    alpha: float = 1.5
    offset: float = 0.001
    scale: float = 0.999

    def __post_init__(self) -> None:
        inside = self.offset > 0 and self.scale >= 0 and self.offset + self.scale <= 1 + 1e-9
        if not (self.alpha > 0 and inside):
            raise ConfigError(
                "noise levels must lie in (0, 1]: 0 < offset, 0 ≤ scale, offset + scale ≤ 1, and 0 < alpha; "
                f"got {self}. Fix model.noise_level."
            )

    def from_uniform(self, uniform: Tensor) -> Tensor:
        """Uniform (0, 1] numbers → noise levels, by the inverse of Beta(α, 1)'s distribution u = x^α."""
        return self.offset + self.scale * uniform.pow(1 / self.alpha)


def interpolate(noise: Tensor, actions: Tensor, noise_level: Tensor) -> Tensor:
    """x_s of `(B, L, A)` noise and actions at `(B,)` noise levels."""
    s = noise_level[:, None, None]
    return s * noise + (1 - s) * actions


def velocity(noise: Tensor, actions: Tensor) -> Tensor:
    """The target velocity u = noise − action."""
    return noise - actions


def noise_level_embedding(noise_level: Tensor, width: int, min_period: float, max_period: float) -> Tensor:
    """`(B,)` noise levels → `(B, D)` float32 [sin | cos] of 2π·s/period, periods geometric over D/2 values.

    Angles are computed in float64, as in the released checkpoints.
    """
    fraction = torch.linspace(0.0, 1.0, width // 2, dtype=torch.float64, device=noise_level.device)
    period = min_period * (max_period / min_period) ** fraction
    angle = noise_level.double()[:, None] * (2 * math.pi / period)
    return torch.cat((angle.sin(), angle.cos()), dim=-1).float()
