"""Keys and values that later tokens read: kept as they come, or in place in buffers of a fixed size.

Legend: `B` batch, `K` cached tokens, `R` tokens that a buffer has room for, `S` new tokens, `G` KV heads, `d` head dim.
"""

from dataclasses import dataclass
from typing import NamedTuple, Protocol, Self

import torch
from torch import Tensor


class Past(Protocol):
    """What one layer remembers of earlier tokens."""

    def extend(self, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values `(B, K + S, G, d)` of earlier and new tokens, given those `(B, S, G, d)` of the new ones."""


class Cache(Protocol):
    """What every layer remembers of earlier tokens."""

    def layer(self, index: int) -> Past:
        """What this layer remembers."""


class Appended(NamedTuple):
    """Earlier keys and values `(B, K, G, d)`, which stay as they are: new ones are put behind a copy."""

    key: Tensor
    value: Tensor

    def extend(self, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        return torch.cat((self.key, key), dim=1), torch.cat((self.value, value), dim=1)


class Written(NamedTuple):
    """Buffers `(B, R, G, d)` whose first `start` tokens are earlier ones: new ones are written behind them."""

    key: Tensor
    value: Tensor
    start: int

    def extend(self, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        end = self.start + key.shape[1]
        self.key[:, self.start : end].copy_(key)
        self.value[:, self.start : end].copy_(value)
        return self.key[:, :end], self.value[:, :end]


@dataclass(frozen=True)
class KVCache:
    """Keys (rotated) and values of a prefix, per layer `(B, K, G, d)`. Read-only: the stack never writes to it."""

    keys: tuple[Tensor, ...]
    values: tuple[Tensor, ...]

    def __len__(self) -> int:
        return self.keys[0].shape[1] if self.keys else 0

    def layer(self, index: int) -> Past:
        """What this layer remembers."""
        return Appended(self.keys[index], self.values[index])


@dataclass(frozen=True)
class StaticCache:
    """Buffers of a fixed size, per layer `(B, R, G, d)`, written in place; the next tokens go to `start`.

    No token is ever moved: tokens that are written again and again, like a chunk's, keep what lies before them.
    """

    keys: tuple[Tensor, ...]
    values: tuple[Tensor, ...]
    start: int = 0

    @classmethod
    def empty(cls, layers: int, shape: tuple[int, int, int, int], like: Tensor) -> Self:
        """Room for `shape` = `(B, R, G, d)` per layer, in the dtype and on the device of `like`."""
        # Zeros, since attention multiplies masked values by zero and what is not a number stays that.
        room = like.new_zeros((2, layers, *shape))
        return cls(tuple(room[0].unbind()), tuple(room[1].unbind()))

    def at(self, start: int) -> "StaticCache":
        """The same buffers, written to from this token on."""
        return StaticCache(self.keys, self.values, start)

    def layer(self, index: int) -> Past:
        """What this layer remembers."""
        return Written(self.keys[index], self.values[index], self.start)

    def read(self) -> KVCache:
        """The tokens before `start`, as views."""
        return KVCache(*(tuple(x[:, : self.start] for x in side) for side in (self.keys, self.values)))
