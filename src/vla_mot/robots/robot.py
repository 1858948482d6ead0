"""A robot that a policy can drive: its embodiment, and the statistics of what the policy learned from it."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass

from vla_mot.errors import ConfigError
from vla_mot.robots.actions import DELTA
from vla_mot.robots.embodiment import Embodiment
from vla_mot.robots.normalization import Statistics


@dataclass(frozen=True)
class Robot:
    """One embodiment in one action mode."""

    embodiment: Embodiment
    statistics: Statistics

    def __post_init__(self) -> None:
        name, mine = self.embodiment.name, self.statistics
        mine.require(embodiment=name, action_mode=mine.action_mode, chunk_size=mine.chunk_size)
        for what, feature, width in (
            ("state", mine.state, self.embodiment.state_dim),
            ("action", mine.action, self.embodiment.action_dim),
        ):
            if feature.mean.numel() != width:
                raise ConfigError(
                    f"the statistics of {name}'s {what} have {feature.mean.numel()} dimensions, the embodiment has "
                    f"{width}: they were computed with another layout."
                )

        counted = mine.computed_on.layout if mine.computed_on else ""
        if counted and counted != layout_of(self.embodiment, mine.action_mode):
            raise ConfigError(
                f"the statistics of {name} were computed with other features, in another order, or with other "
                "dimensions relative to the state, than its description has now. Compute them again with "
                "`vla-mot data stats`."
            )

    @property
    def action_mode(self) -> str:
        """`delta` or `abs`."""
        return self.statistics.action_mode

    def __str__(self) -> str:
        return f"{self.embodiment.name}/{self.action_mode}"


def layout_of(embodiment: Embodiment, action_mode: str) -> str:
    """Hash of what statistics stand for: features and dimensions in their order, and which are relative."""
    relative = action_mode == DELTA
    told = [
        [[field.key, field.names] for field in embodiment.state],
        [[field.key, field.names, field.delta if relative else None] for field in embodiment.action],
    ]
    return hashlib.blake2b(json.dumps(told).encode(), digest_size=16).hexdigest()


def choose_robot(
    robots: Sequence[Robot], embodiment: str | None = None, action_mode: str | None = None
) -> Robot:
    """Return the one robot of that name or alias, whatever its case, and action mode; None fits every one.

    Raises ConfigError when no robot fits, or several do.
    """
    found = [
        robot
        for robot in robots
        if (embodiment is None or robot.embodiment.is_called(embodiment))
        and action_mode in (None, robot.action_mode)
    ]
    if len(found) == 1:
        return found[0]
    known = ", ".join(map(str, robots)) or "none: its checkpoint holds no statistics"
    asked = f"embodiment {embodiment or 'any'!r} in action mode {action_mode or 'any'!r}"
    if not found:
        raise ConfigError(f"the policy knows no robot with {asked}. It knows {known}.")
    raise ConfigError(
        f"{asked} fits {len(found)} robots of the policy: {', '.join(map(str, found))}. "
        "Say embodiment=… (and action_mode=…)."
    )
