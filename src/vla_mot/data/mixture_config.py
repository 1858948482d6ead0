"""A mixture as it is written: groups of datasets with weights, and what is different for single datasets.

    root: /datasets
    groups:
      robotwin: {pattern: "robotwin/*", weight: 0.08, by: frames, exponent: 0.5}
      egodex: {pattern: ["egodex/part1", "egodex/part2"], weight: 0.02, by: uniform, foresight_only: true}
    datasets:
      robotwin/broken: {skip: true}

A group's weight is shared by its datasets in proportion to frames^γ or episodes^γ, or evenly.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from vla_mot.errors import ConfigError
from vla_mot.options import at_least, within
from vla_mot.robots.embodiment import Embodiment

_MOST_EXPONENT = 10
_MOST = 1e15
"""The greatest exponent, and the greatest weight or share: beyond, products of them are no numbers any more."""


def _positive(name: str, value: float, instead: str) -> None:
    if not 0 < value <= _MOST:
        hint = f"; {instead}" if value == 0 else ""
        raise ConfigError(f"{name} must be positive and at most {_MOST:g}, got {value}{hint}.")


@dataclass(frozen=True)
class Declared:
    """What a source is said to hold, so that a mixture can be read where its data is not.

    frames: of all its datasets together. fps: for hours; None where nobody says.
    """

    frames: int
    episodes: int | None = None
    fps: float | None = None

    def __post_init__(self) -> None:
        at_least(1, {"declared.frames": self.frames})


@dataclass(frozen=True)
class Group:
    """Datasets that share a weight.

    pattern: names of datasets relative to the mixture's root; `*` stands for any text, `/` included. One or several.
    weight: of the group, relative to the other groups' (1 is not needed as their sum).
    by, exponent: how the weight is shared: in proportion to frames^exponent or episodes^exponent, or `uniform`.
    embodiment: a name, `auto` (the dataset's robot type) or `generic` (inferred from its features).
    foresight_only: states and actions that the datasets hold are not read, as of people whose hands were tracked.
    declared: stands in where no root is given.
    """

    pattern: str | tuple[str, ...]
    weight: float
    by: Literal["frames", "episodes", "uniform"] = "frames"
    exponent: float = 1.0
    embodiment: str = "auto"
    foresight_only: bool = False
    declared: Declared | None = None

    def __post_init__(self) -> None:
        if not self.patterns or not all(self.patterns):
            raise ConfigError(f"pattern must name datasets, e.g. 'robotwin/*', got {self.pattern!r}.")
        _positive("weight", self.weight, "leave the group out instead")
        within(0, _MOST_EXPONENT, {"exponent": self.exponent})

    @property
    def patterns(self) -> tuple[str, ...]:
        """All of them."""
        return (self.pattern,) if isinstance(self.pattern, str) else self.pattern

    def mass(self, frames: int, episodes: int) -> float:
        """What a dataset of that size weighs within the group."""
        counted = {"frames": frames, "episodes": episodes, "uniform": 1}[self.by]
        return float(counted) ** self.exponent


@dataclass(frozen=True)
class Override:
    """What is different for one dataset. share: factor on its weight within the group; embodiment: as in a group."""

    share: float = 1.0
    embodiment: str | None = None
    skip: bool = False

    def __post_init__(self) -> None:
        _positive("share", self.share, "write skip: true to leave it out")


@dataclass(frozen=True)
class MixtureConfig:
    """A mixture as written. Without groups, `root` is itself the one dataset, of the `embodiment` that is named.

    root: folder that patterns are relative to; None resolves from what the groups declare.
    datasets: overrides by name. embodiments: YAML files of robots that are not in conf/embodiment/.
    """

    root: Path | None
    groups: Mapping[str, Group] = field(default_factory=dict)
    datasets: Mapping[str, Override] = field(default_factory=dict)
    embodiments: tuple[Path, ...] = ()
    embodiment: Embodiment | None = None
