"""Statistics of one embodiment in one action mode, and the normalization that they define.

`normalized = (x - mean) / (std + 1e-6)`, the released checkpoints' convention. The statistics of a delta action
are those of real chunk windows *after* the state at the chunk's start was subtracted.

Legend: `n` rows, `D` real dims of one feature, `P` padded dims, `...` any leading axes.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor

from vla_mot.errors import ConfigError
from vla_mot.options import section
from vla_mot.robots.actions import require_action_mode
from vla_mot.robots.moments import Moments, moments

EPS = 1e-6
QUANTILES: Mapping[str, float] = {"q01": 0.01, "q10": 0.1, "q50": 0.5, "q90": 0.9, "q99": 0.99}
"""LeRobot's names of the quantiles that statistics may hold, and the share of the rows that lies below each."""
_NUMBERS = ("mean", "std", "min", "max")


def _beside(numbers: Tensor, x: Tensor) -> Tensor:
    """On the device and in the dtype of `x`; nobody waits for the copy."""
    return numbers.to(x.device, x.dtype, non_blocking=True)


@dataclass(frozen=True)
class FeatureStatistics:
    """Mean, standard deviation, minimum and maximum of one feature: `(D,)` float32 each, and the row count.

    quantiles: `(D,)` float32 under names of `QUANTILES`; those that are known, none in old checkpoints. They are shown
    and stored, normalization does not use them.
    """

    mean: Tensor
    std: Tensor
    min: Tensor
    max: Tensor
    count: int
    quantiles: Mapping[str, Tensor] = field(default_factory=dict)

    def normalize(self, x: Tensor) -> Tensor:
        """`(..., D)` in physical units → `(..., D)` with mean 0 and deviation 1."""
        return (x - _beside(self.mean, x)) / (_beside(self.std, x) + EPS)

    def unnormalize(self, x: Tensor) -> Tensor:
        """The inverse of `normalize`."""
        return x * (_beside(self.std, x) + EPS) + _beside(self.mean, x)

    def to_dict(self) -> dict[str, Any]:
        """Plain lists, in the layout of `stats.json`."""
        numbers = {name: getattr(self, name).tolist() for name in _NUMBERS}
        quantiles = {name: self.quantiles[name].tolist() for name in QUANTILES if name in self.quantiles}
        return numbers | quantiles | {"count": [self.count]}

    @classmethod
    def from_dict(cls, spec: Mapping[str, Any]) -> "FeatureStatistics":
        """Read one feature of `stats.json`. Raises ConfigError naming what is missing or of another length."""
        missing = [name for name in _NUMBERS if name not in spec]
        if missing:
            raise ConfigError(f"statistics lack {', '.join(missing)}; found {', '.join(sorted(spec))}.")
        names = (*_NUMBERS, *(name for name in QUANTILES if name in spec))
        numbers = {name: torch.tensor(spec[name], dtype=torch.float32) for name in names}
        if len({tuple(value.shape) for value in numbers.values()}) != 1:
            shapes = {name: tuple(value.shape) for name, value in numbers.items()}
            raise ConfigError(f"statistics of one feature must have one shape, got {shapes}.")
        quantiles = {name: numbers.pop(name) for name in names if name in QUANTILES}
        return cls(**numbers, count=int(spec.get("count", [0])[0]), quantiles=quantiles)

    @classmethod
    def joined(cls, parts: "Sequence[FeatureStatistics]") -> "FeatureStatistics":
        """Features one after another, as an embodiment lists them; without any, those of no dimension.

        The count is the first one's; quantiles are kept where every part has them.
        """

        def cat(name: str) -> Tensor:
            return torch.cat([torch.empty(0), *(getattr(part, name) for part in parts)])

        known = [name for name in QUANTILES if parts and all(name in part.quantiles for part in parts)]
        return cls(
            **{name: cat(name) for name in _NUMBERS},
            count=parts[0].count if parts else 0,
            quantiles={name: torch.cat([part.quantiles[name] for part in parts]) for name in known},
        )

    @classmethod
    def of(cls, rows: Moments, quantiles: Mapping[str, Tensor] | None = None) -> "FeatureStatistics":
        """From float64 moments (and quantiles) to the float32 that normalizes."""
        return cls(
            mean=rows.mean.float(),
            std=rows.std.float(),
            min=rows.min.float(),
            max=rows.max.float(),
            count=rows.count,
            quantiles={name: value.float() for name, value in (quantiles or {}).items()},
        )


@dataclass(frozen=True)
class CountedDataset:
    """One dataset that statistics were computed on: its name, the hash of its tables, and what of it was counted."""

    name: str
    content_hash: str
    frames: int
    episodes: int


@dataclass(frozen=True)
class Origin:
    """What statistics were computed on. content_hash: of all datasets' tables and the episodes chosen of them.

    layout: hash of the features that were counted, their order, and what was relative
    (`vla_mot.robots.robot.layout_of`); empty where nobody says.
    """

    content_hash: str
    datasets: tuple[CountedDataset, ...]
    layout: str = ""


@dataclass(frozen=True)
class Statistics:
    """Statistics of state and action chunks for one embodiment and action mode.

    embodiment: its name. action_mode: `delta` or `abs`. chunk_size: steps of the windows that were counted;
    delta statistics depend on it. Training or running with another embodiment, mode or chunk length is refused.
    computed_on: the datasets, where that is known.
    Raises ConfigError for another action mode: taken as absolute in silence, it would move a robot elsewhere.
    """

    embodiment: str
    action_mode: str
    chunk_size: int
    state: FeatureStatistics
    action: FeatureStatistics
    computed_on: Origin | None = None

    def __post_init__(self) -> None:
        require_action_mode(self.action_mode)

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
        origin = self.computed_on
        return {
            "embodiment": self.embodiment,
            "action_mode": self.action_mode,
            "chunk_size": self.chunk_size,
            "observation.state": self.state.to_dict(),
            "action": self.action.to_dict(),
            **({"computed_on": json.loads(json.dumps(asdict(origin)))} if origin else {}),
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
            computed_on=section(Origin, "computed_on", spec["computed_on"])
            if "computed_on" in spec
            else None,
        )


def summarize(parts: Iterable[Tensor]) -> FeatureStatistics:
    """Statistics of rows that come in parts of `(n, D)`, in float64. Raises ConfigError when there is no row."""
    found = moments(parts)
    if found is None:
        raise ConfigError("no rows to compute statistics from.")
    return FeatureStatistics.of(found)


def pad_last(x: Tensor, width: int, what: str) -> Tensor:
    """Zero-pad the last axis `D` to `width`. Raises ConfigError when D is wider."""
    if x.shape[-1] > width:
        raise ConfigError(
            f"{what} has {x.shape[-1]} dimensions, the model takes at most {width}; "
            f"raise max_{what}_dim in conf/model/."
        )
    return torch.nn.functional.pad(x, (0, width - x.shape[-1]))
