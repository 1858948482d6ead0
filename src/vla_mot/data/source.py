"""One LeRobot v3 dataset on disk, as one embodiment's frames, states, actions and instructions.

Read through lerobot's own classes, never the network. What is small (state, action, tasks) is held in memory; pictures
are decoded on demand, a run of frames at a time.

Legend: `N` frames of the dataset, `E` episodes, `T` frames asked for, `S`/`D` real state and action dims.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import torch
from torch import Tensor

from vla_mot.data import checks
from vla_mot.data.content import tree_digest
from vla_mot.data.quiet import quiet_media, video_backend
from vla_mot.errors import DatasetError
from vla_mot.robots.embodiment import Embodiment, Field
from vla_mot.robots.images import to_bytes

if TYPE_CHECKING:
    from lerobot.datasets.lerobot_dataset import LeRobotDataset

_RUN = 128
"""Frames decoded in one call: lerobot compares every asked with every decoded time stamp."""


@dataclass(frozen=True)
class Source:
    """A dataset opened for one embodiment. Made by `Source.open`.

    root, embodiment: what was opened; an embodiment without a rate takes the dataset's. fps: frames per second.
    bounds: `(E, 2)` int64, first frame and one past the last of every episode.
    state: `(N, S)`, action: `(N, D)` float32 in physical units. timestamp: `(N,)` float32, seconds in the episode.
    tasks: every instruction; task_index: `(N,)` int64, the one of each frame.
    content_hash: of everything that is stored; the same for a copy elsewhere.
    """

    root: Path
    embodiment: Embodiment
    fps: float
    bounds: Tensor
    state: Tensor
    action: Tensor
    timestamp: Tensor
    tasks: tuple[str, ...]
    task_index: Tensor
    content_hash: str
    _dataset: "LeRobotDataset" = field(repr=False, compare=False)

    @classmethod
    def open(cls, root: Path | str, embodiment: Embodiment, repo_id: str | None = None) -> Self:
        """Open a LeRobot v3 dataset folder.

        Raises DatasetError when the folder is missing, incomplete, corrupt, of another format, or does not fit the
        embodiment (cameras, state, action, fps).
        """
        root = Path(root)
        info = checks.read_info(root)
        checks.check_features(root, info, embodiment)
        with quiet_media():
            dataset, files = _load(root, repo_id or f"local/{root.name}")
        columns = _Columns(root, dataset)
        episodes = dataset.meta.episodes
        bounds = np.stack([episodes["dataset_from_index"], episodes["dataset_to_index"]], axis=1)
        source = cls(
            root=root,
            embodiment=embodiment if embodiment.fps else replace(embodiment, fps=float(info["fps"])),
            fps=float(info["fps"]),
            bounds=torch.from_numpy(bounds.astype(np.int64)),
            state=columns.vector(embodiment.state),
            action=columns.vector(embodiment.action),
            timestamp=columns.scalar("timestamp").float(),
            tasks=tuple(str(task) for task in dataset.meta.tasks.index),
            task_index=columns.scalar("task_index").long(),
            content_hash=tree_digest(root, files),
            _dataset=dataset,
        )
        _check_order(source, columns.scalar("index"))
        return source

    @property
    def num_frames(self) -> int:
        """Frames in all episodes."""
        return self.state.shape[0]

    @property
    def num_episodes(self) -> int:
        """Number of episodes."""
        return self.bounds.shape[0]

    @property
    def has_actions(self) -> bool:
        """False for recordings without action labels (human video), which train foresight only."""
        return self.embodiment.action_dim > 0

    @property
    def cameras(self) -> tuple[str, ...]:
        """The embodiment's image features, in the order of their slots."""
        return tuple(key for _, key in self.embodiment.present_cameras)

    def task(self, frame: int) -> str:
        """Return the instruction of a frame."""
        return self.tasks[int(self.task_index[frame])]

    def decode(self, episode: int, camera: str) -> Tensor:
        """Decode all pictures of one camera in one episode: `(T, 3, h, w)` uint8 at the recorded size.

        Raises DatasetError naming the file when it cannot be decoded.
        """
        return torch.cat(list(self.decode_runs(episode, camera)))

    def decode_runs(self, episode: int, camera: str) -> Iterator[Tensor]:
        """Decode as `decode` does, a bounded number of frames at a time: long episodes need little memory."""
        start, end = self.bounds[episode].tolist()
        for at in range(start, end, _RUN):
            try:
                with quiet_media():
                    run = self._decode_run(episode, camera, range(at, min(at + _RUN, end)))
            except Exception as error:
                raise DatasetError(
                    f"camera {camera!r} of episode {episode} in {self.root} cannot be decoded: {error}"
                ) from error
            yield run

    def _decode_run(self, episode: int, camera: str, run: range) -> Tensor:
        from lerobot.datasets.video_utils import decode_video_frames

        meta = self._dataset.meta
        if camera not in meta.video_keys:
            rows = self._dataset.hf_dataset.select_columns([camera])[run.start : run.stop][camera]
            return to_bytes(torch.stack(rows))
        offset = meta.episodes[episode][f"videos/{camera}/from_timestamp"]
        times = [offset + time for time in self.timestamp[run.start : run.stop].tolist()]
        return decode_video_frames(
            self.root / meta.get_video_file_path(episode, camera),
            times,
            tolerance_s=0.25 / self.fps,
            backend=video_backend(),
            return_uint8=True,
        )


def _load(root: Path, repo_id: str) -> tuple["LeRobotDataset", list[Path]]:
    """Open the dataset and list its files; all are there, so lerobot has nothing to ask the Hub for."""
    from lerobot.datasets.dataset_metadata import LeRobotDatasetMetadata
    from lerobot.datasets.lerobot_dataset import LeRobotDataset

    try:
        meta = LeRobotDatasetMetadata(repo_id, root=root)
        stored = {root / meta.get_data_file_path(i) for i in range(meta.total_episodes)}
        stored |= {
            root / meta.get_video_file_path(i, key)
            for i in range(meta.total_episodes)
            for key in meta.video_keys
        }
        checks.check_rows(root, meta.total_frames, meta.total_episodes)
        files = sorted({*stored, *(path for path in (root / "meta").rglob("*") if path.is_file())})
        checks.check_files(root, files)
        return LeRobotDataset(repo_id, root=root, video_backend=video_backend()), files
    except DatasetError:
        raise
    except Exception as error:
        raise DatasetError(f"LeRobot cannot open dataset {root}: {type(error).__name__}: {error}") from error


class _Columns:
    """Columns of a dataset's tables as tensors, without touching its pictures."""

    def __init__(self, root: Path, dataset: "LeRobotDataset") -> None:
        self.root = root
        self.table: Any = dataset.hf_dataset.data
        self.rows = len(dataset.hf_dataset)

    def scalar(self, key: str) -> Tensor:
        """A column of one number per frame, `(N,)`."""
        return torch.from_numpy(self.table.column(key).to_numpy().copy())

    def vector(self, fields: Sequence[Field]) -> Tensor:
        """Concatenated features, `(N, D)` float32. Raises DatasetError where a value is not finite."""
        parts = [self._feature(field.key, len(field.names)) for field in fields]
        return torch.cat([torch.empty(self.rows, 0), *parts], dim=1)

    def _feature(self, key: str, width: int) -> Tensor:
        column = self.table.column(key).combine_chunks()
        while hasattr(column, "flatten") and hasattr(column.type, "value_type"):
            column = column.flatten()
        values = torch.from_numpy(np.asarray(column.to_numpy(zero_copy_only=False), dtype=np.float32).copy())
        values = values.reshape(self.rows, width)
        if not values.isfinite().all():
            frame = int((~values.isfinite()).any(1).nonzero()[0])
            raise DatasetError(f"feature {key!r} of {self.root} is NaN or infinite at frame {frame}.")
        return values


def _check_order(source: Source, index: Tensor) -> None:
    expected = torch.arange(source.num_frames)
    starts, ends = source.bounds.unbind(1)
    whole = bool((starts[1:] == ends[:-1]).all()) and ends[-1] == source.num_frames and starts[0] == 0
    if not torch.equal(index, expected) or not whole:
        raise DatasetError(
            f"dataset {source.root} is inconsistent: its {source.num_frames} rows are not the consecutive frames "
            f"of its {source.num_episodes} episodes. It was edited or copied in part; record or copy it again."
        )
