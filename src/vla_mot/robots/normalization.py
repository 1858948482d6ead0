"""Statistics of one embodiment in one action mode, and the normalization that they define.

`normalized = (x - mean) / (std + 1e-6)`, the released checkpoints' convention. The statistics of a delta action
are those of real chunk windows *after* the state at the chunk's start was subtracted.

Legend: `n` rows, `D` real dims of one feature, `P` padded dims, `...` any leading axes.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from vla_mot.errors import ConfigError

EPS = 1e-6
_NUMBERS = ("mean", "std", "min", "max")


@dataclass(frozen=True)
class FeatureStatistics:
    """Mean, standard deviation, minimum and maximum of one feature: `(D,)` float32 each, and the row count."""

    mean: Tensor
    std: Tensor
    min: Tensor
    max: Tensor
    count: int

    def normalize(self, x: Tensor) -> Tensor:
        """`(..., D)` in physical units → `(..., D)` with mean 0 and deviation 1."""
        return (x - self.mean.to(x)) / (self.std.to(x) + EPS)

    def unnormalize(self, x: Tensor) -> Tensor:
        """The inverse of `normalize`."""
        return x * (self.std.to(x) + EPS) + self.mean.to(x)

    def to_dict(self) -> dict[str, Any]:
        """Plain lists, in the layout of `stats.json`."""
        return {name: getattr(self, name).tolist() for name in _NUMBERS} | {"count": [self.count]}

    @classmethod
    def from_dict(cls, spec: Mapping[str, Any]) -> "FeatureStatistics":
        """Read one feature of `stats.json`. Raises ConfigError naming what is missing or of another length."""
        missing = [name for name in _NUMBERS if name not in spec]
        if missing:
            raise ConfigError(f"statistics lack {', '.join(missing)}; found {', '.join(sorted(spec))}.")
        numbers = {name: torch.tensor(spec[name], dtype=torch.float32) for name in _NUMBERS}
        if len({tuple(value.shape) for value in numbers.values()}) != 1:
            shapes = {name: tuple(value.shape) for name, value in numbers.items()}
            raise ConfigError(f"statistics of one feature must have one shape, got {shapes}.")
        return cls(**numbers, count=int(spec.get("count", [0])[0]))


@dataclass(frozen=True)
class Statistics:
    """Statistics of state and action chunks for one embodiment and action mode.

    embodiment: its name. action_mode: `delta` or `abs`. chunk_size: steps of the windows that were counted;
    delta statistics depend on it. Training or running with another embodiment, mode or chunk length is refused.
    """

    embodiment: str
    action_mode: str
    chunk_size: int
    state: FeatureStatistics
    action: FeatureStatistics

    def require(self, *, embodiment: str, action_mode: str, chunk_size: int) -> None:
        """Raise ConfigError unless these statistics were computed for exactly this use."""
        for what, mine, asked in (
            ("embodiment", self.embodiment, embodiment),
            ("action mode", self.action_mode, action_mode),
            ("chunk size", self.chunk_size, chunk_size),
        ):
            if mine != asked:
                raise ConfigError(
                    f"the statistics are for {what} {mine!r}, but {asked!r} is wanted. Compute statistics for "
                    "it, or use the checkpoint's own configuration."
                )

    def to_dict(self) -> dict[str, Any]:
        """Plain values, as stored in a checkpoint."""
        return {
            "embodiment": self.embodiment,
            "action_mode": self.action_mode,
            "chunk_size": self.chunk_size,
            "observation.state": self.state.to_dict(),
            "action": self.action.to_dict(),
        }

    @classmethod
    def from_dict(cls, spec: Mapping[str, Any]) -> "Statistics":
        """The inverse of `to_dict`. Raises ConfigError when a part is missing."""
        for key in ("embodiment", "action_mode", "chunk_size", "observation.state", "action"):
            if key not in spec:
                raise ConfigError(f"statistics lack {key!r}; found {', '.join(sorted(spec))}.")
        return cls(
            embodiment=str(spec["embodiment"]),
            action_mode=str(spec["action_mode"]),
            chunk_size=int(spec["chunk_size"]),
            state=FeatureStatistics.from_dict(spec["observation.state"]),
            action=FeatureStatistics.from_dict(spec["action"]),
        )


def summarize(parts: Iterable[Tensor]) -> FeatureStatistics:
    """Statistics of rows that come in parts of `(n, D)`, in float64. Raises ConfigError when there is no row.

    Merged by Chan's pairwise update, which keeps small deviations of large means.
    """
    count = 0
    mean, squares = torch.zeros(2, 1, dtype=torch.float64)
    low, high = torch.tensor([[torch.inf], [-torch.inf]], dtype=torch.float64)
    for rows in parts:
        part, n = rows.double(), rows.shape[0]
        if n == 0:
            continue
        centre = part.mean(0)
        shift = centre - mean
        squares = squares + ((part - centre) ** 2).sum(0) + shift**2 * (count * n / (count + n))
        mean = mean + shift * (n / (count + n))
        low, high = torch.minimum(low, part.amin(0)), torch.maximum(high, part.amax(0))
        count += n
    if count == 0:
        raise ConfigError("no rows to compute statistics from.")
    return FeatureStatistics(
        mean=mean.float(),
        std=(squares / count).sqrt().float(),
        min=low.float(),
        max=high.float(),
        count=count,
    )


def pad_last(x: Tensor, width: int, what: str) -> Tensor:
    """Zero-pad the last axis `D` to `width`. Raises ConfigError when D is wider."""
    if x.shape[-1] > width:
        raise ConfigError(
            f"{what} has {x.shape[-1]} dimensions, the model takes at most {width}; "
            f"raise max_{what}_dim in conf/model/."
        )
    return torch.nn.functional.pad(x, (0, width - x.shape[-1]))
