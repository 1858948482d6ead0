"""`vla-mot data inspect`: how a dataset maps to a robot, with pictures, and what does not fit."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
from torch import Tensor

from vla_mot.commands import folders, inspected
from vla_mot.commands.console import console, show_library_log
from vla_mot.commands.settings import section
from vla_mot.commands.training_settings import model_config
from vla_mot.data.inspection import Inspection, inspect_dataset
from vla_mot.data.preview import ChunkTrace, Moment, look, trace
from vla_mot.data.source import Source
from vla_mot.data.statistics import compute_statistics
from vla_mot.errors import ConfigError, DatasetError
from vla_mot.evaluate.dataset_page import DatasetPage, write_page
from vla_mot.evaluate.dataset_picture import Curve, Strip, draw_curves, draw_strips
from vla_mot.model.config import ModelConfig
from vla_mot.options import at_least
from vla_mot.robots.catalog import AUTO
from vla_mot.robots.dimensions import action_dimensions
from vla_mot.robots.generic import embodiment_yaml

_COUNTED = 64  # episodes whose statistics scale the page's curves
_MODEL_GROUPS = ("model", "backbone", "foresight")


@dataclass(frozen=True)
class Wanted:
    """Which embodiment a dataset is read with."""

    name: str = AUTO
    files: tuple[Path, ...] = ()


@dataclass(frozen=True)
class InspectConfig:
    """See conf/inspect.yaml."""

    root: Path
    embodiment: Wanted = field(default_factory=Wanted)
    action_mode: Literal["delta", "abs"] = "delta"
    episodes: int = 3
    save_embodiment: Path | None = None
    output: Path | None = None

    def __post_init__(self) -> None:
        at_least(0, {"episodes": self.episodes})
        if self.save_embodiment is not None and self.save_embodiment.exists():
            raise ConfigError(f"save_embodiment={self.save_embodiment} exists already; choose another file.")


def run(config: dict[str, Any], overrides: list[str]) -> None:
    """The command. Raises DatasetError, after everything is shown, when the dataset does not fit."""
    show_library_log()
    own = {key: value for key, value in config.items() if key not in _MODEL_GROUPS}
    settings, model = section(InspectConfig, "", own), model_config(config, None)
    if settings.output is not None:
        folders.require_unused(settings.output)
    found = inspect_dataset(settings.root, settings.embodiment.name, settings.embodiment.files)
    offset, problems = _compare(found, model)
    moments = _look(found.source, settings.episodes, offset, model, problems)
    told = inspected.facts(found, model.view_size, offset, model.chunk_size, settings.action_mode)
    tables = inspected.sheets(found, model.view_size, settings.action_mode)
    inspected.say(told, tables, problems, found.notes)
    description = _describe(found, settings)
    if settings.output is not None:
        page = DatasetPage(
            title=found.root.resolve().name,
            facts=told,
            problems=problems,
            notes=found.notes,
            sheets=tables,
            pictures={},
            embodiment=description,
        )
        _draw(page, found.source, moments, offset, model.chunk_size, settings.action_mode, settings.output)
    if problems:
        raise DatasetError(f"{found.root} does not fit: {len(problems)} problem(s), listed above.")


def _compare(found: Inspection, model: ModelConfig) -> tuple[int, list[str]]:
    """m in frames (the model's default where it cannot be said), and all problems, those with the model among them."""
    problems, robot = list(found.problems), found.embodiment
    if robot is None:
        return model.offset_frames, problems
    for what, here, there, key in (
        ("state dimensions", robot.state_dim, model.max_state_dim, "max_state_dim"),
        ("action dimensions", robot.action_dim, model.max_action_dim, "max_action_dim"),
        ("camera slots", len(robot.cameras), model.num_views, "num_views"),
    ):
        if here > there:
            problems.append(f"{here} {what}, the model has {there}: set model.{key}={here}")
    try:
        return model.offset(replace(robot, fps=robot.fps or found.fps)), problems
    except ConfigError as error:
        problems.append(str(error))
        return model.offset_frames, problems


def _look(
    source: Source | None, episodes: int, offset: int, model: ModelConfig, problems: list[str]
) -> list[Moment]:
    """A moment of each of the first episodes; what cannot be decoded is a problem."""
    moments = []
    for episode in range(0 if source is None else min(episodes, source.num_episodes)):
        assert source is not None
        try:
            moments.append(look(source, episode, offset, model.view_size))
        except DatasetError as error:
            problems.append(str(error))
    return moments


def _describe(found: Inspection, settings: InspectConfig) -> str:
    """The embodiment's YAML: saved where that is asked for, printed where it was inferred and is not saved."""
    if found.embodiment is None:
        return ""
    how = "Inferred from the features" if found.inferred else "The embodiment"
    comment = f"{how} of {found.root.resolve().name}. Check units, delta, and the cameras' slots."
    text = embodiment_yaml(found.embodiment, comment)
    if settings.save_embodiment is not None:
        folders.write_atomic(settings.save_embodiment, text)
        console.print(f"embodiment: {settings.save_embodiment}")
    elif found.inferred:
        console.print(
            "\n[bold]The inferred embodiment[/bold], to be saved with save_embodiment=<file> and corrected"
        )
        console.print(text, markup=False, soft_wrap=True)
    return text


# ---- the page -----------------------------------------------------------------------------------------------


def _draw(
    page: DatasetPage,
    source: Source | None,
    moments: Sequence[Moment],
    offset: int,
    chunk_size: int,
    action_mode: str,
    output: Path,
) -> None:
    with folders.whole(output) as folder:
        pictures: dict[str, tuple[str, Path]] = {}
        if source is not None and moments:
            strips = draw_strips(_strips(source, moments), offset, folder / "frames.png")
            note = (
                "Scaled and padded as for the model; what lies outside of an episode is repeated and flagged."
            )
            pictures["What the model sees"] = (note, strips)
        if source is not None and source.has_actions:
            first = moments[0] if moments else None
            drawn = _numbers(source, first.frame if first else 0, chunk_size, action_mode)
            path = draw_curves(
                _curves(source, drawn, action_mode), drawn.frame, source.fps, folder / "actions.png"
            )
            counted = min(_COUNTED, source.num_episodes)
            note = f"Episode {drawn.episode}, normalized with statistics of {counted} of its episodes."
            pictures["What the model learns"] = (note, path)
        write_page(replace(page, pictures=pictures), folder / "index.html")
    console.print(f"page: {output / 'index.html'}")


def _strips(source: Source, moments: Sequence[Moment]) -> list[Strip]:
    strips = []
    for moment in moments:
        real = (moment.history_real, True, moment.future_real)
        for slot, key in enumerate(source.embodiment.cameras):
            view = moment.views.get(slot)
            pictures = None if view is None else _pixels(view)
            strips.append(
                Strip(
                    f"episode {moment.episode}, frame {moment.frame}",
                    f"slot {slot}\n{key or 'no camera'}",
                    pictures,
                    real,
                )
            )
    return strips


def _pixels(view: Tensor) -> np.ndarray:
    """`(3, 3, H, W)` → `(3, H, W, 3)`."""
    return view.permute(0, 2, 3, 1).numpy()


def _numbers(source: Source, frame: int, chunk_size: int, action_mode: str) -> ChunkTrace:
    counted = range(min(_COUNTED, source.num_episodes))
    statistics = compute_statistics(source, chunk_size, action_mode, list(counted))
    return trace(source, 0, frame, statistics)


def _curves(source: Source, drawn: ChunkTrace, action_mode: str) -> list[Curve]:
    """One for each action dimension, with the state beneath it that it commands, where one does."""
    actions = action_dimensions(source.embodiment, action_mode)
    curves = []
    for i, at in enumerate(actions):
        state = None if at.state is None else drawn.state[:, at.state].numpy()
        chunk = drawn.chunk[:, i].numpy()
        curves.append(Curve(at.name, at.unit, drawn.action[:, i].numpy(), state, chunk, None, at.delta))
    shown = {at.state for at in actions}
    for i, (name, unit) in enumerate(_names(source.embodiment.state)):
        if i not in shown:
            point = float(drawn.normalized_state[i])
            curves.append(Curve(name, unit, None, drawn.state[:, i].numpy(), None, point, False))
    return curves


def _names(fields: Sequence[Any]) -> list[tuple[str, str]]:
    return [pair for item in fields for pair in zip(item.names, item.units, strict=True)]
