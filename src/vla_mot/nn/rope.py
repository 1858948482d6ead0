"""Rotary position embedding over one or three position axes (interleaved M-RoPE).

Legend: `B` batch, `S` tokens, `H` heads, `D` head dim, `X` position axes (1, or 3 for time, height, width).
"""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class RopeConfig:
    """base: of the geometric frequencies. sections: frequencies per axis (time, height, width), interleaved as
    t h w t h w … until an axis has had its share; empty for a single axis. Source: Qwen3-VL."""

    base: float
    sections: tuple[int, ...] = ()


@dataclass(frozen=True)
class Rotation:
    """Cosines and sines, `(B, S, D)` each, float32."""

    cos: Tensor
    sin: Tensor

    def __getitem__(self, tokens: slice) -> "Rotation":
        return Rotation(self.cos[:, tokens], self.sin[:, tokens])


def rotation(positions: Tensor, head_dim: int, config: RopeConfig) -> Rotation:
    """`(X, B, S)` int64 positions → the rotation of every token. Computed in float32."""
    device = positions.device
    exponent = torch.arange(0, head_dim, 2, dtype=torch.int64, device=device).float() / head_dim
    angles = positions.float().unsqueeze(-1) / config.base**exponent  # (X, B, S, D/2)
    if config.sections:
        axis = _axis_of_frequency(config.sections, head_dim // 2).to(device)
        angles = angles.gather(0, axis.expand(1, *angles.shape[1:])).squeeze(0)
    else:
        angles = angles[0]
    doubled = torch.cat((angles, angles), dim=-1)
    return Rotation(doubled.cos(), doubled.sin())


def _axis_of_frequency(sections: tuple[int, ...], count: int) -> Tensor:
    """`(D/2,)` int64: which axis turns each frequency."""
    axis = torch.zeros(count, dtype=torch.int64)
    for number, size in enumerate(sections[1:], start=1):
        axis[number : size * len(sections) : len(sections)] = number
    return axis


def rotate(x: Tensor, by: Rotation) -> Tensor:
    """Rotate `(B, S, H, D)` queries or keys."""
    first, second = x.chunk(2, dim=-1)
    turned = torch.cat((-second, first), dim=-1)
    return x * by.cos.unsqueeze(2).to(x.dtype) + turned * by.sin.unsqueeze(2).to(x.dtype)
