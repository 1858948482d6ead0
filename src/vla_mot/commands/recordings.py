"""Which datasets an open-loop evaluation reads, as which robot, and at which moments."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vla_mot.data.checks import misfits, read_info
from vla_mot.data.frames import VideoFrames
from vla_mot.data.mixture import find_datasets
from vla_mot.data.recipe import SplitConfig
from vla_mot.data.source import Source
from vla_mot.data.windows import WindowConfig, WindowDataset, Windows
from vla_mot.errors import ConfigError
from vla_mot.evaluate.open_loop.recorded import Recorded, silent_robot
from vla_mot.hub.spec import require_fit
from vla_mot.infer.policy import Policy
from vla_mot.robots.catalog import find_embodiment
from vla_mot.robots.embodiment import Embodiment
from vla_mot.robots.generic import infer_embodiment
from vla_mot.robots.robot import Robot


@dataclass(frozen=True)
class Choice:
    """Episodes of a dataset: the first `most` (None: all), only of those that were held out where `split` is given.

    split: share of the episodes that was held out, and the seed.
    """

    most: int | None = None
    split: tuple[float, int] | None = None

    def of(self, total: int, root: Path) -> tuple[int, ...]:
        """The episodes, split as in training: none of a dataset that has a single one.

        Raises ConfigError where there are too few for the split.
        """
        try:
            held_out = range(total) if self.split is None else SplitConfig(*self.split).episodes(total)[1]
        except ConfigError as error:
            raise ConfigError(f"held_out=true: dataset {root}: {error}") from error
        return tuple(held_out[: self.most])


@dataclass(frozen=True)
class Recording:
    """A dataset, opened as one robot. policy: the one that drives it. moments: rows of `windows`, in their order."""

    name: str
    policy: Policy
    source: Source
    windows: WindowDataset
    episodes: tuple[int, ...]
    moments: Tensor

    def actions(self, episode: int) -> Tensor:
        """`(T, D)` as recorded over an episode that is held."""
        frames = self.source.rows(torch.arange(*self.source.bounds[episode].tolist()))
        return self.source.action[frames]

    def batches(self, size: int) -> Iterator[Recorded]:
        """The moments, `size` at a time. Raises EpisodeError where pictures cannot be decoded."""
        for rows in self.moments.split(size):
            yield self._recorded(self.windows.__getitems__(rows))

    def _recorded(self, windows: Windows) -> Recorded:
        _, episode, now = windows.origin.unbind(1)
        keys = self.source.cameras
        return Recorded(
            images={key: windows.images[:, :2, view] for view, key in enumerate(keys)},
            future={key: windows.images[:, 2, view] for view, key in enumerate(keys)},
            future_valid=windows.future_valid,
            state=windows.state,
            actions=windows.actions,
            step_mask=windows.step_mask,
            tasks=windows.tasks,
            episode=episode,
            frame=now - self.source.bounds[episode, 0],
            index=now,
        )


def find_roots(given: Sequence[Path]) -> dict[str, Path]:
    """Name → folder of every dataset in the folders that were given, each of them one or a folder of some.

    Raises DatasetError for a folder that is missing, or holds no dataset.
    """
    found: dict[str, Path] = {}
    for root in given:
        is_dataset = (root / "meta" / "info.json").is_file() or not root.is_dir()
        inside = () if is_dataset else find_datasets(root)
        for name, place in {name: root / name for name in inside}.items() or [(root.resolve().name, root)]:
            if place.resolve() not in {known.resolve() for known in found.values()}:
                found[name if name not in found else str(place)] = place
    return found


def open_recording(
    name: str,
    root: Path,
    policy: Policy,
    choice: Choice,
    stride: int | None,
    *,
    chosen: bool,
    action_mode: str | None = None,
) -> Recording | None:
    """Open one dataset: read what is small, and nothing of the pictures. None where no episode of it is chosen.

    chosen: read it as the policy's robot, whatever it states. Raises DatasetError for one that cannot be read or does
    not fit, ConfigError for a robot that the policy does not know.
    """
    info, model = read_info(root), policy.spec.model
    robot = policy.robot if chosen else robot_of(name, info, policy, action_mode)
    if not choice.of(int(info.get("total_episodes", 1)), root):
        return None
    keep = partial(_frames_of, choice, root)
    source = Source.open(root, robot.embodiment, missing="report", keep=keep)
    config = WindowConfig(model.chunk_size, model.offset(source.embodiment), model.view_size)
    episodes = choice.of(source.num_episodes, root)
    windows = WindowDataset(source, VideoFrames(source, model.view_size), config, episodes)
    since = windows.frames - source.bounds[windows.episodes, 0]
    moments = (since % (stride or model.chunk_size) == 0).nonzero()[:, 0]
    driven = Policy(policy.model, policy.spec, robot, policy.engine)
    return Recording(name, driven, source, windows, episodes, moments)


def _frames_of(choice: Choice, root: Path, bounds: Tensor) -> range:
    """From the first to the last chosen episode."""
    chosen = bounds[list(choice.of(len(bounds), root))]
    return range(int(chosen[0, 0]), int(chosen[-1, 1]))


def robot_of(name: str, info: dict[str, Any], policy: Policy, action_mode: str | None) -> Robot:
    """The robot of a dataset: the policy's that goes by its robot type; of an unknown type the one whose layout it has;
    a known one without actions, or what a dataset without state and actions shows.

    Raises ConfigError where there is none of these.
    """
    spec, told = policy.spec, info.get("robot_type")
    body = find_embodiment(told) if isinstance(told, str) else None
    bodies = {robot.embodiment.name: robot.embodiment for robot in spec.robots}
    names = [known for known in (told, body.name if body else None) if isinstance(known, str)]
    named = [own for own in bodies.values() if any(map(own.is_called, names))]
    fitting = named or ([own for own in bodies.values() if not misfits(info, own)] if body is None else [])
    if len(fitting) == 1:
        return spec.robot(fitting[0].name, action_mode)
    silent = body if body is not None and not body.action_dim else _without_actions(info)
    if silent is not None:
        robot = silent_robot(replace(silent, fps=silent.fps or float(info["fps"])), spec.model)
        require_fit(robot, spec.model)
        return robot
    if len(bodies) == 1 and body is None:
        return spec.robot(None, action_mode)  # opening the dataset says what does not fit
    raise ConfigError(
        f"dataset {name!r} was recorded by robot type {told!r}, which the checkpoint does not know (it knows "
        f"{', '.join(bodies) or 'none'}). Leave the dataset out, or say robot=… if it has the layout of one of these."
    )


def _without_actions(info: dict[str, Any]) -> Embodiment | None:
    """What a dataset shows that has neither state nor actions, such as people's videos; None for any other."""
    try:
        found = infer_embodiment(info)
    except ConfigError:
        return None
    return found if not found.action_dim and not found.state_dim else None
