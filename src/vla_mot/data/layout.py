"""Where the episodes of a LeRobot v3 dataset lie: their frames, and the files that hold them.

Legend: `E` episodes.
"""

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np

from vla_mot.data.tables import Columns, read_columns
from vla_mot.errors import DatasetError

_DATA = "data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet"
_VIDEO = "videos/{video_key}/chunk-{chunk_index:03d}/file-{file_index:03d}.mp4"
"""LeRobot's own defaults, for a `meta/info.json` that does not state them."""


@dataclass(frozen=True)
class Files:
    """The files of one kind: one camera's videos, or the tables of frames.

    template: LeRobot's pattern of their names, relative to the dataset. key: the camera, empty for tables.
    place: `(E, 2)` int32, chunk and file number of every episode. frames: `(E,)` int64, how many the episode's file
    holds, those of other episodes too. start: `(E,)` float64 seconds at which an episode begins in its video; None for
    tables.
    """

    template: str
    key: str
    place: np.ndarray
    frames: np.ndarray
    start: np.ndarray | None = None

    def path(self, episode: int) -> str:
        """The file that holds an episode, relative to the dataset."""
        return self._name(*self.place[episode].tolist())

    def paths(self) -> list[str]:
        """All files, each once."""
        return [self._name(*place) for place in np.unique(self.place, axis=0).tolist()]

    def _name(self, chunk: int, file: int) -> str:
        return self.template.format(video_key=self.key, chunk_index=chunk, file_index=file)


@dataclass(frozen=True)
class Layout:
    """What `meta/episodes` says.

    bounds: `(E, 2)` int64, first frame and one past the last of every episode. tables: the files with their frames.
    videos: the files of every camera that is stored as video.
    """

    bounds: np.ndarray
    tables: Files
    videos: Mapping[str, Files]

    @classmethod
    def read(cls, root: Path, info: Mapping[str, Any]) -> Self:
        """Read what `info` lists. Raises DatasetError when a file of the tables is damaged or disagrees with it."""
        cameras = [key for key, spec in info["features"].items() if spec["dtype"] == "video"]
        names = ["episode_index", "dataset_from_index", "dataset_to_index", *_numbers("data")]
        for key in cameras:
            names += [*_numbers(f"videos/{key}"), f"videos/{key}/from_timestamp"]
        columns = read_columns(root, "meta/episodes/*/*.parquet", names)
        expected = int(info.get("total_episodes", 0))
        if not np.array_equal(columns["episode_index"], np.arange(expected)):
            raise DatasetError(
                f"dataset {root} is inconsistent: meta/episodes lists {len(columns['episode_index'])} episodes, its "
                f"meta/info.json says {expected}, numbered from 0. Copy or record it again."
            )
        bounds = np.stack([columns["dataset_from_index"], columns["dataset_to_index"]], 1).astype(np.int64)
        data = str(info.get("data_path") or _DATA)
        video = str(info.get("video_path") or _VIDEO)
        return cls(
            bounds=bounds,
            tables=Files(data, "", *_place(columns, "data", bounds)),
            videos={
                key: Files(
                    video,
                    key,
                    *_place(columns, f"videos/{key}", bounds),
                    columns[f"videos/{key}/from_timestamp"].astype(np.float64),
                )
                for key in cameras
            },
        )

    def stored(self) -> list[str]:
        """Every file that the episodes need, relative to the dataset."""
        return [*self.tables.paths(), *(path for files in self.videos.values() for path in files.paths())]


def absent(root: Path, paths: Iterable[str]) -> list[str]:
    """Those of the files that are not there, sorted; one look into each folder, however many files it has."""
    wanted: dict[str, set[str]] = {}
    for path in paths:
        folder, _, name = path.rpartition("/")
        wanted.setdefault(folder, set()).add(name)
    gone = []
    for folder, names in wanted.items():
        try:
            with os.scandir(root / folder) as entries:
                names = names - {entry.name for entry in entries if entry.is_file()}
        except (FileNotFoundError, NotADirectoryError):
            pass
        gone += [f"{folder}/{name}" for name in names]
    return sorted(gone)


def _numbers(prefix: str) -> tuple[str, str]:
    return f"{prefix}/chunk_index", f"{prefix}/file_index"


def _place(columns: Columns, prefix: str, bounds: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """`place` and `frames` of `Files`."""
    place = np.stack([columns[name] for name in _numbers(prefix)], axis=1).astype(np.int32)
    _, file = np.unique(place, axis=0, return_inverse=True)
    file = file.reshape(-1)
    return place, np.bincount(file, weights=bounds[:, 1] - bounds[:, 0]).astype(np.int64)[file]
