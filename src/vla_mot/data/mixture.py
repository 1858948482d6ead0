"""A mixture, resolved: which datasets a policy learns from, and how often it sees each.

Only the `meta/info.json` of every dataset is read here, so that a thousand of them resolve within seconds; workers open
what they are assigned. How a mixture is written: `vla_mot.data.mixture_config`.
"""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, Self

from vla_mot.data import checks
from vla_mot.data.content import remembered_digest
from vla_mot.data.mixture_config import MixtureConfig, Override
from vla_mot.errors import ConfigError, DatasetError, nearest, unknown_name
from vla_mot.robots.catalog import embodiment_of
from vla_mot.robots.embodiment import Embodiment


@dataclass(frozen=True)
class Entry:
    """One dataset of a mixture.

    name: its folder relative to the root, with `/`. root: the folder; None where it is only declared.
    weight: its probability in the mixture. episodes, fps: None where nobody says.
    embodiment: the robot; None where only declared.
    """

    name: str
    root: Path | None
    group: str
    weight: float
    frames: int
    episodes: int | None
    fps: float | None
    embodiment: Embodiment | None

    @property
    def hours(self) -> float | None:
        """Recorded time, where the rate is known."""
        return self.frames / self.fps / 3600 if self.fps else None

    @property
    def robot(self) -> Embodiment:
        """The embodiment of a dataset that is there."""
        assert self.embodiment is not None, f"{self.name} is only declared"
        return self.embodiment

    def revision(self) -> str:
        """Hash of the metadata, in which every episode's statistics stand: another recording has another one."""
        assert self.root is not None, f"{self.name} is only declared"
        return remembered_digest(
            self.root, (path for path in (self.root / "meta").rglob("*") if path.is_file())
        )


@dataclass(frozen=True)
class Mixture:
    """Datasets in the order of their names, with weights that sum to 1."""

    entries: tuple[Entry, ...]

    @property
    def embodiments(self) -> tuple[Embodiment, ...]:
        """Every robot once, in the order of their names, at the rate of its datasets; at none where they differ.

        Raises ConfigError when two layouts go by one name.
        """
        found: dict[str, Embodiment] = {}
        rates: dict[str, set[float | None]] = {}
        for entry in self.entries:
            robot = replace(entry.robot, fps=None)  # a generic one has the rate of its own dataset
            if found.setdefault(robot.name, robot) != robot:
                raise ConfigError(
                    f"two robots of different layout are called {robot.name!r}, one of them in dataset {entry.name!r}; "
                    "save their YAML (vla-mot data inspect) under two names, list both in data.embodiments, and name "
                    "them in data.datasets."
                )
            rates.setdefault(robot.name, set()).add(entry.robot.fps or entry.fps)
        return tuple(
            replace(found[name], fps=next(iter(rates[name])) if len(rates[name]) == 1 else None)
            for name in sorted(found)
        )

    def require_data(self) -> Self:
        """Raise DatasetError unless every dataset is there, not only declared."""
        absent = [entry.group for entry in self.entries if entry.root is None]
        if absent:
            raise DatasetError(
                f"the mixture only declares {', '.join(absent)}: give data.root=<folder of the datasets>."
            )
        return self

    def manifest(self) -> list[dict[str, Any]]:
        """What a checkpoint records: dataset, revision, frames, weight and what else tells one mixture from another."""
        return [
            {
                "dataset": entry.name,
                "group": entry.group,
                "revision": entry.revision(),
                "embodiment": entry.robot.name,
                "frames": entry.frames,
                "episodes": entry.episodes,
                "fps": entry.fps,
                "weight": entry.weight,
            }
            for entry in self.entries
        ]


def resolve_mixture(config: MixtureConfig) -> Mixture:
    """Find the datasets of a mixture and give each its weight.

    Raises ConfigError for a group that matches nothing, a dataset in two groups, an override of an unknown dataset,
    an unknown robot or two of one name; DatasetError for datasets that are no LeRobot v3 datasets or do not fit their
    embodiment.
    """
    if config.root is None:
        return _declared(config)
    if not config.groups:
        return Mixture((_only(config.root, config),))
    found = [_entry(config, name, group) for name, group in sorted(_owners(config).items())]
    shares = _shares(config, found, _masses(config, found))
    mixture = Mixture(tuple(replace(entry, weight=share) for entry, share in zip(found, shares, strict=True)))
    assert mixture.embodiments  # raises where two layouts go by one name
    return mixture


def _only(root: Path, config: MixtureConfig) -> Entry:
    """The one dataset of a mixture without groups."""
    try:
        info = _info(root)
    except DatasetError as error:
        if not root.is_dir() or (root / "meta" / "info.json").is_file():
            raise
        raise DatasetError(
            f"{error} If datasets lie in it, say which of them in data.groups of a mixture (data=mixture), e.g. "
            "'data.groups={all: {pattern: \"*\", weight: 1}}'."
        ) from error
    return _described(root.name, root, "", info, "auto", config)


def _declared(config: MixtureConfig) -> Mixture:
    """A mixture of sources that are not here, one entry each."""
    silent = [name for name, group in config.groups.items() if group.declared is None]
    if silent or not config.groups:
        raise ConfigError(
            f"data.root must be given, the folder of the datasets: groups {', '.join(silent) or '(none)'} do not "
            "declare how many frames they hold."
        )
    total = sum(group.weight for group in config.groups.values())
    entries = []
    for name, group in sorted(config.groups.items()):
        told = group.declared
        assert told is not None
        entries.append(
            Entry(name, None, name, group.weight / total, told.frames, told.episodes, told.fps, None)
        )
    return Mixture(tuple(entries))


def find_datasets(root: Path) -> tuple[str, ...]:
    """Names of all datasets (folders with `meta/info.json`) under a folder, sorted; links are followed once.

    Raises DatasetError when the folder is missing.
    """
    if not root.is_dir():
        raise DatasetError(f"data.root {root} is no folder.")
    found, seen = [], set()
    for folder, inside, _ in os.walk(root, followlinks=True):
        place = os.path.realpath(folder)
        if place in seen:
            inside.clear()
            continue
        seen.add(place)
        if "meta" in inside and (Path(folder) / "meta" / "info.json").is_file():
            found.append(Path(folder).relative_to(root).as_posix())
            inside.clear()  # its videos hold no datasets
        inside[:] = sorted(
            name for name in inside if not name.startswith(".")
        )  # of two links, always the same one
    return tuple(sorted(found))


def _owners(config: MixtureConfig) -> dict[str, str]:
    """Dataset → group. Raises ConfigError where a group has none, a dataset has two, or an override is of none."""
    assert config.root is not None
    names = find_datasets(config.root)
    owners: dict[str, str] = {}
    for group, spec in config.groups.items():
        for pattern in spec.patterns:
            matched = [name for name in names if fnmatchcase(name, pattern)]
            if not matched:
                raise ConfigError(
                    f"group {group!r}: no dataset under {config.root} matches {pattern!r}.{nearest(pattern, names)} "
                    f"There are {len(names)}: {', '.join(names[:5])}{', …' if len(names) > 5 else ''}"
                )
            for name in matched:
                if owners.setdefault(name, group) != group:
                    raise ConfigError(
                        f"dataset {name!r} belongs to groups {owners[name]!r} and {group!r}; narrow a pattern."
                    )
    for name in config.datasets:
        if name not in owners:
            raise ConfigError(unknown_name("dataset in data.datasets", name, list(owners)))
    kept = {name: group for name, group in owners.items() if not _override(config, name).skip}
    if empty := [group for group in config.groups if group not in kept.values()]:
        raise ConfigError(f"every dataset of group {empty[0]!r} is skipped; leave the group out instead.")
    return kept


def _override(config: MixtureConfig, name: str) -> Override:
    return config.datasets.get(name, Override())


def _entry(config: MixtureConfig, name: str, group: str) -> Entry:
    assert config.root is not None
    root = config.root / name
    wanted = _override(config, name).embodiment or config.groups[group].embodiment
    return _described(name, root, group, _info(root), wanted, config)


def _described(
    name: str, root: Path, group: str, info: Mapping[str, Any], wanted: str, config: MixtureConfig
) -> Entry:
    """An entry, not weighted yet, of a dataset that fits its embodiment."""
    robot = config.embodiment
    if robot is None:
        try:
            robot = embodiment_of(info, wanted, config.embodiments)
        except ConfigError as error:
            raise ConfigError(f"dataset {root}: {error}") from error
    if group in config.groups and config.groups[group].foresight_only:
        robot = robot.without_actions()
    checks.check_features(root, info, robot)
    return Entry(
        name=name,
        root=root,
        group=group,
        weight=1.0,
        frames=int(info["total_frames"]),
        episodes=int(info["total_episodes"]),
        fps=float(info["fps"]),
        embodiment=robot,
    )


def _info(root: Path) -> Mapping[str, Any]:
    info = checks.read_info(root)
    for key in ("total_frames", "total_episodes"):
        if not isinstance(info.get(key), int) or info[key] < 1:
            raise DatasetError(
                f"{root}/meta/info.json: {key} must be a positive whole number, got {info.get(key)!r}."
            )
    return info


def _masses(config: MixtureConfig, entries: Sequence[Entry]) -> list[float]:
    """What every dataset weighs within its group."""
    return [
        config.groups[entry.group].mass(entry.frames, entry.episodes or 1)
        * _override(config, entry.name).share
        for entry in entries
    ]


def _shares(config: MixtureConfig, entries: Sequence[Entry], masses: Sequence[float]) -> list[float]:
    """Every dataset's probability: group weight over all weights, times its part of the group's mass."""
    total = sum(group.weight for group in config.groups.values())
    in_group: dict[str, float] = dict.fromkeys(config.groups, 0.0)
    for entry, mass in zip(entries, masses, strict=True):
        in_group[entry.group] += mass
    return [
        config.groups[entry.group].weight / total * mass / in_group[entry.group]
        for entry, mass in zip(entries, masses, strict=True)
    ]
