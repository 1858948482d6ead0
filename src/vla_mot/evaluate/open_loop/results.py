"""What an open-loop evaluation found, and its files.

open_loop.json   everything but pictures and episodes: per embodiment and per dataset, with intervals
errors.csv       one row per dataset, dimension, horizon step and method
foresight.csv    one row per dataset, camera and method
"""

import csv
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vla_mot.evaluate.open_loop import errors as actions
from vla_mot.evaluate.open_loop import pictures as foresight
from vla_mot.evaluate.open_loop.errors import ActionErrors
from vla_mot.evaluate.open_loop.pictures import PictureScores
from vla_mot.evaluate.open_loop.traces import Trace

RESULTS_FILE, ERRORS_FILE, FORESIGHT_FILE = "open_loop.json", "errors.csv", "foresight.csv"
ERRORS_HEAD = (
    "embodiment", "dataset", "dimension", "unit", "kind", "step", "seconds", "method", "mse", "mae", "count",
)  # fmt: skip
FORESIGHT_HEAD = (
    "embodiment", "dataset", "camera", "offset_frames", "method", "psnr", "psnr_low", "psnr_high", "ssim", "ssim_low",
    "ssim_high", "count",
)  # fmt: skip


@dataclass(frozen=True)
class DatasetResult:
    """One dataset.

    fps: frames per second. offset_frames: m. chunk_size, stride: in frames. episodes: that were scored. moments: how
    many. errors: None without actions. pictures: None where nothing was foreseen. traces: episodes that are drawn.
    notes: what was left out, and why.
    """

    dataset: str
    embodiment: str
    fps: float
    offset_frames: int
    chunk_size: int
    stride: int
    episodes: tuple[int, ...]
    moments: int
    errors: ActionErrors | None
    pictures: PictureScores | None
    traces: tuple[Trace, ...] = ()
    notes: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        names = ("dataset", "embodiment", "fps", "offset_frames", "chunk_size", "stride", "moments")
        return {
            **{name: getattr(self, name) for name in names},
            "episodes": list(self.episodes),
            "notes": list(self.notes),
            **_scores(self.errors, self.pictures),
        }


@dataclass(frozen=True)
class OpenLoopResult:
    """All datasets, in the order in which they were given. provenance: how it was made, as text."""

    datasets: tuple[DatasetResult, ...]
    provenance: Mapping[str, str]

    def by_embodiment(self) -> dict[str, tuple[DatasetResult, ...]]:
        """Embodiment → its datasets."""
        names = dict.fromkeys(found.embodiment for found in self.datasets)
        return {name: tuple(d for d in self.datasets if d.embodiment == name) for name in names}

    def errors(self, embodiment: str) -> ActionErrors | None:
        """Over all datasets of an embodiment; None where none has actions."""
        parts = [found.errors for found in self.by_embodiment()[embodiment] if found.errors is not None]
        return actions.joined(parts) if parts else None

    def pictures(self, embodiment: str) -> PictureScores | None:
        """Over all datasets of an embodiment; None where nothing was foreseen."""
        parts = [found.pictures for found in self.by_embodiment()[embodiment] if found.pictures is not None]
        return foresight.joined_pictures(parts) if parts else None

    def save(self, folder: Path) -> None:
        """Write the three files into a folder that is there."""
        content = {
            "embodiments": {
                name: _scores(self.errors(name), self.pictures(name)) for name in self.by_embodiment()
            },
            "datasets": [found.to_dict() for found in self.datasets],
            "provenance": dict(self.provenance),
        }
        text = json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False)
        (folder / RESULTS_FILE).write_text(text + "\n")
        _write(folder / ERRORS_FILE, ERRORS_HEAD, (row for d in self.datasets for row in _error_rows(d)))
        _write(
            folder / FORESIGHT_FILE, FORESIGHT_HEAD, (row for d in self.datasets for row in _picture_rows(d))
        )


def _scores(errors: ActionErrors | None, pictures: PictureScores | None) -> dict[str, Any]:
    found: dict[str, Any] = {"actions": None, "foresight": None}
    if errors is not None:
        found["actions"] = {
            "action_mode": errors.action_mode,
            "episodes": errors.episodes,
            "chunks": errors.moments,
            "groups": {group.label: _methods(errors, group) for group in errors.groups()},
            "dimensions": {
                dimension.name: {"unit": dimension.unit, "kind": _kind(errors, place)}
                | _methods(errors, errors.single(place))
                for place, dimension in enumerate(errors.dimensions)
            },
        }
    if pictures is not None:
        found["foresight"] = {
            camera: {method: pictures.score(camera, method).to_dict() for method in foresight.METHODS}
            | {"pictures": pictures.pictures(camera)}
            for camera in pictures.cameras
        }
    return found


def _methods(errors: ActionErrors, group: actions.Group) -> dict[str, Any]:
    return {method: errors.score(group, method).to_dict() for method in actions.METHODS}


def _kind(errors: ActionErrors, place: int) -> str:
    return "gripper" if errors.dimensions[place].gripper else "joint"


def _error_rows(found: DatasetResult) -> Iterator[Sequence[Any]]:
    """Of every dimension and method, every step that some episode reaches; step 0 is the action at t."""
    errors = found.errors
    if errors is None:
        return
    counts = errors.steps()
    for place, dimension in enumerate(errors.dimensions):
        means = errors.horizon(errors.single(place))  # (M, K, L)
        for m, method in enumerate(actions.METHODS):
            for step, count in enumerate(counts.astype(int).tolist()):
                if count:
                    mae, mse = means[m, :, step].tolist()
                    yield (
                        found.embodiment, found.dataset, dimension.name, dimension.unit, _kind(errors, place), step,
                        step / found.fps, method, mse, mae, count,
                    )  # fmt: skip


def _picture_rows(found: DatasetResult) -> Iterator[Sequence[Any]]:
    pictures = found.pictures
    if pictures is None:
        return
    for camera in pictures.cameras:
        for method in foresight.METHODS:
            score = pictures.score(camera, method)
            numbers = [end for part in (score.psnr, score.ssim) for end in (part.value, part.low, part.high)]
            yield (
                found.embodiment, found.dataset, camera, found.offset_frames, method,
                *("" if math.isnan(number) else number for number in numbers), pictures.pictures(camera),
            )  # fmt: skip


def _write(path: Path, head: Sequence[str], rows: Iterator[Sequence[Any]]) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(head)
        writer.writerows(rows)
