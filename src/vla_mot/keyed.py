"""Random numbers that depend only on (seed, step, stream, index), never on who computes them.

A counter-based generator: every number is a hash of its coordinates (SplitMix64's finalizer, applied to each
coordinate in turn), so two ranks draw what one would, a resumed run draws what an uninterrupted one would, and
there is no state to save. The numbers serve training (noise, noise levels, augmentation), not cryptography. This
module stands below everything that draws and imports nothing of ours.

Legend: `B` batch, `K` draws, `M` numbers per draw.
"""

import math

import torch
from torch import Tensor

_GOLDEN = -7046029254386353131  # 0x9E3779B97F4A7C15 as int64
_MIX_1 = -4658895280553007687  # 0xBF58476D1CE4E5B9
_MIX_2 = -7723592293110705685  # 0x94D049BB133111EB


def _shift(x: Tensor, bits: int) -> Tensor:
    """Logical (unsigned) right shift of int64."""
    return (x >> bits) & ((1 << (64 - bits)) - 1)


def _mix(x: Tensor) -> Tensor:
    x = (x ^ _shift(x, 30)) * _MIX_1
    x = (x ^ _shift(x, 27)) * _MIX_2
    return x ^ _shift(x, 31)


def keyed_uniform(seed: int, step: int, stream: int, index: Tensor, count: int) -> Tensor:
    """`(B,)` int64 sample indices → `(B, count)` float64 in (0, 1], keyed by (seed, step, stream, index).

    stream: separates uses (noise, noise levels, …) that share the other coordinates.
    """
    key = torch.zeros((), dtype=torch.int64, device=index.device)
    for part in (seed, step, stream):
        key = _mix(key + _GOLDEN + part)
    rows = _mix(_mix(key ^ index) + _GOLDEN)
    columns = torch.arange(1, count + 1, dtype=torch.int64, device=index.device) * _GOLDEN
    bits = _shift(_mix(rows[:, None] + columns), 11)
    return (bits + 1).double() * 2.0**-53


def keyed_normal(seed: int, step: int, stream: int, index: Tensor, shape: tuple[int, ...]) -> Tensor:
    """`(B,)` int64 sample indices → `(B, *shape)` float32 standard normal numbers (Box–Muller in float64).

    Number i does not depend on how many are asked for: with `(K, …)` draws, a larger K keeps the earlier ones.
    """
    count = math.prod(shape)
    uniform = keyed_uniform(seed, step, stream, index, 2 * count)
    radius = (-2 * uniform[:, 0::2].log()).sqrt()
    return (radius * (2 * math.pi * uniform[:, 1::2]).cos()).float().reshape(-1, *shape)
