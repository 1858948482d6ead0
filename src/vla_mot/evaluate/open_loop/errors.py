"""Action errors in the robot's own units: per dimension, per horizon step, per episode, beside holding still.

    policy   the chunk that the policy samples
    hold     the present state, kept for the whole chunk: what a number is to be compared with

Everything is a ratio of sums over real steps of real episodes; intervals are bootstrapped over episodes, for the
moments of one are no independent samples.

Legend: `B` moments, `E` episodes, `M` methods, `K` kinds (absolute, squared), `L` chunk steps, `D` action dims,
`R` bootstrap resamples.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vla_mot.evaluate.intervals import Interval, episode_weights, over_episodes
from vla_mot.robots.dimensions import ActionDimension, action_dimensions
from vla_mot.robots.normalization import EPS
from vla_mot.robots.robot import Robot

METHODS = ("policy", "hold")
KINDS = ("mae", "mse")
DEVIATIONS = "deviations"
"""The unit of errors that are divided by the deviations with which the robot's actions are normalized."""


@dataclass(frozen=True)
class Group:
    """Dimensions whose errors are averaged. unit: of them all; None where there are several. scaled: in deviations."""

    name: str
    unit: str | None
    places: tuple[int, ...]
    scaled: bool = False

    @property
    def label(self) -> str:
        """`joints (rad)`, `all (several units)`."""
        return f"{self.name} ({self.unit or 'several units'})"


@dataclass(frozen=True)
class Score:
    """Mean errors of one method over a group: absolute and squared, with 95 % intervals over episodes.

    times: the method's squared error over that of holding still, paired. count: numbers that were compared.
    """

    mae: Interval
    mse: Interval
    times: Interval
    count: int

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        parts = {"mae": self.mae, "mse": self.mse, "times_hold": self.times}
        return {name: part.to_dict() for name, part in parts.items()} | {"count": self.count}


@dataclass(frozen=True)
class ActionErrors:
    """Summed errors of one embodiment.

    dimensions: D of them. deviations: `(D,)` with which actions are normalized. sums: `(E, M, K, L, D)` float64.
    counts: `(E, L)` real steps. moments: how many chunks were compared.
    """

    embodiment: str
    action_mode: str
    dimensions: tuple[ActionDimension, ...]
    deviations: np.ndarray
    sums: np.ndarray
    counts: np.ndarray
    moments: int

    @property
    def episodes(self) -> int:
        """E."""
        return len(self.counts)

    def groups(self) -> tuple[Group, ...]:
        """All dimensions, joints and grippers apart, each also apart by unit where there are several; and all of them
        in deviations, which robots of any units share."""
        every = range(len(self.dimensions))
        parts = {
            "all": tuple(every),
            "joints": tuple(place for place in every if not self.dimensions[place].gripper),
            "grippers": tuple(place for place in every if self.dimensions[place].gripper),
        }
        found = [group for name, places in parts.items() if places for group in self._by_unit(name, places)]
        return (*found, Group("all", DEVIATIONS, tuple(every), scaled=True))

    def _by_unit(self, name: str, places: tuple[int, ...]) -> list[Group]:
        units = dict.fromkeys(self.dimensions[place].unit for place in places)
        if len(units) == 1:
            return [Group(name, next(iter(units)), places)]
        apart = [
            Group(name, unit, tuple(p for p in places if self.dimensions[p].unit == unit)) for unit in units
        ]
        return [Group(name, None, places), *(apart if name != "all" else [])]

    def single(self, place: int) -> Group:
        """One dimension as a group."""
        return Group(self.dimensions[place].name, self.dimensions[place].unit, (place,))

    def score(self, group: Group, method: str = "policy") -> Score:
        """The errors of a group over all steps."""
        table = self._chosen(group).sum(3)  # (E, M, K)
        counts = self.counts.sum(1) * len(group.places)  # (E,)
        weights = episode_weights(self.episodes)
        drawn, drawn_counts = np.tensordot(weights, table, 1), weights @ counts
        total, count = table.sum(0), counts.sum()
        m, hold = METHODS.index(method), METHODS.index("hold")

        def mean(kind: int) -> Interval:
            return over_episodes(total[m, kind] / count, drawn[:, m, kind] / drawn_counts, self.episodes)

        with np.errstate(divide="ignore", invalid="ignore"):
            draws = drawn[:, m, 1] / drawn[:, hold, 1]
            times = over_episodes(total[m, 1] / total[hold, 1], draws, self.episodes)
        return Score(mean(0), mean(1), times, int(count))

    def horizon(self, group: Group) -> np.ndarray:
        """`(M, K, L)` mean errors of every step, NaN where no episode reaches it."""
        with np.errstate(divide="ignore", invalid="ignore"):
            means: np.ndarray = self._chosen(group).sum(0) / (self.counts.sum(0) * len(group.places))
        return means

    def steps(self) -> np.ndarray:
        """`(L,)` how many moments have a recorded action at each step."""
        counted: np.ndarray = self.counts.sum(0)
        return counted

    def _chosen(self, group: Group) -> np.ndarray:
        """`(E, M, K, L)`: summed over the dimensions of a group."""
        places = list(group.places)
        sums = self.sums[..., places]
        if group.scaled:
            scale = self.deviations[places]
            sums = sums / np.stack([scale, scale**2])[:, None]
        chosen: np.ndarray = sums.sum(-1)
        return chosen


def joined(parts: Sequence[ActionErrors]) -> ActionErrors:
    """Errors of several datasets of one embodiment, their episodes one after another."""
    first = parts[0]
    assert all(part.dimensions == first.dimensions for part in parts), "one embodiment has one layout"
    return replace(
        first,
        sums=np.concatenate([part.sums for part in parts]),
        counts=np.concatenate([part.counts for part in parts]),
        moments=sum(part.moments for part in parts),
    )


class ErrorSums:
    """Adds up the errors of one dataset, episode by episode."""

    def __init__(self, robot: Robot) -> None:
        self.robot = robot
        self.moments = 0
        self._found: dict[int, tuple[np.ndarray, np.ndarray]] = {}

    def add(
        self, recorded: Tensor, step_mask: Tensor, chunks: Mapping[str, Tensor], episodes: Tensor
    ) -> None:
        """recorded: `(B, L, D)`, step_mask: `(B, L)`, chunks: method → `(B, L, D)`, episodes: `(B,)`."""
        error = torch.stack([(chunks[name] - recorded).double() for name in METHODS], dim=1)
        both = torch.stack([error.abs(), error.square()], dim=2) * step_mask[:, None, None, :, None]
        self.moments += len(episodes)
        for row, episode in enumerate(episodes.tolist()):
            sums, counts = self._found.get(episode, (0.0, 0.0))
            self._found[episode] = (
                sums + both[row].numpy(),
                counts + step_mask[row].double().numpy(),
            )

    def errors(self) -> ActionErrors:
        """What was added; at least one moment was."""
        robot, found = self.robot, self._found.values()
        return ActionErrors(
            embodiment=robot.embodiment.name,
            action_mode=robot.action_mode,
            dimensions=action_dimensions(robot.embodiment, robot.action_mode),
            deviations=robot.statistics.action.std.double().numpy() + EPS,
            sums=np.stack([sums for sums, _ in found]),
            counts=np.stack([counts for _, counts in found]),
            moments=self.moments,
        )
