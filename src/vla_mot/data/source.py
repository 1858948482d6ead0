"""One LeRobot v3 dataset on disk, as one embodiment's frames, states, actions and instructions.

Opening is cheap, for hundreds are opened: it reads what is small (state, action, tasks) into memory, and nothing else.
Pictures are decoded on demand, a run of frames at a time; no file stays open, nothing touches the network.
A data worker opens only the frames that it draws: frames keep their numbers, and `Source.rows` says where they lie.

Legend: `N` frames of the dataset, `R` frames held (`N`, unless it was opened in part), `E` episodes, `T`/`n` frames
asked for, `S`/`D` real state and action dims.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, Self

import numpy as np
import torch
from torch import Tensor

from vla_mot.data import checks
from vla_mot.data.content import remembered_digest
from vla_mot.data.decoder import choose_decoder
from vla_mot.data.layout import Layout, absent
from vla_mot.data.pictures import Pictures
from vla_mot.data.tables import Columns, read_part, read_tasks
from vla_mot.errors import DatasetError
from vla_mot.robots.embodiment import Embodiment, Field

Missing = Literal["refuse", "report"]
"""What a missing video does: it refuses the dataset, or only its own episodes, and `Source.missing` lists it."""

Keep = Callable[[Tensor], range]
"""The frames to hold of a dataset with these `(E, 2)` bounds: at least one."""

_EVERY_FRAME = ("index", "episode_index", "timestamp", "task_index")


@dataclass(frozen=True, eq=False)
class Source:
    """A dataset opened for one embodiment. Made by `Source.open`.

    root, embodiment: what was opened; an embodiment without a rate takes the dataset's. fps: frames per second.
    bounds: `(E, 2)` int64, first frame and one past the last of every episode.
    state: `(R, S)`, action: `(R, D)` float32 in physical units. timestamp: `(R,)` float32, seconds in the episode.
    tasks: every instruction; task_index: `(R,)` int32, the one of each frame. first: the first frame held.
    tolerant: opened with `missing="report"`; missing: the videos that are not there, relative to root.
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
    tolerant: bool
    missing: tuple[str, ...]
    pictures: Pictures = field(repr=False)
    first: int = 0

    @classmethod
    def open(
        cls,
        root: Path | str,
        embodiment: Embodiment,
        *,
        missing: Missing = "refuse",
        decoder: str = "auto",
        keep: Keep | None = None,
    ) -> Self:
        """Open a LeRobot v3 dataset folder.

        missing: see `Missing`. decoder: as in `choose_decoder`. keep: which frames are read and checked, all by
        default; everything else asserts that it was asked for those only.
        Raises DatasetError when the folder is missing, incomplete, corrupt, of another format, or does not fit the
        embodiment (cameras, state, action, fps), and ConfigError when the decoder asked for cannot be loaded.
        """
        root = Path(root)
        if decoder != "auto":
            choose_decoder(decoder)
        info = checks.read_info(root)
        checks.check_features(root, info, embodiment)
        with _explained(root):
            return cls._read(root, info, embodiment, missing, decoder, keep)

    @classmethod
    def _read(
        cls,
        root: Path,
        info: Mapping[str, Any],
        embodiment: Embodiment,
        missing: Missing,
        decoder: str,
        keep: Keep | None,
    ) -> Self:
        layout = Layout.read(root, info)
        gone = absent(root, layout.stored())
        tables = set(layout.tables.paths())
        checks.check_files(root, [p for p in gone if missing == "refuse" or p in tables])
        checks.check_bounds(root, info, layout.bounds)
        bounds, fps = torch.from_numpy(layout.bounds), float(info["fps"])
        held = keep(bounds) if keep else range(int(bounds[-1, 1]))
        fields = dict.fromkeys(f.key for f in (*embodiment.state, *embodiment.action))
        columns, stored = read_part(
            root, "data/*/*.parquet", [*_EVERY_FRAME, *fields], held.start, held.stop if keep else None
        )
        index, episode_index = columns.pop("index"), columns.pop("episode_index")
        checks.check_rows(root, layout.bounds, stored, held.start, index, episode_index)
        tasks = read_tasks(root)
        checks.check_tasks(root, len(tasks), held.start, columns["task_index"])
        timestamp = torch.from_numpy(columns["timestamp"].astype(np.float32))
        shown = {key: layout.videos[key] for _, key in embodiment.present_cameras if key in layout.videos}
        return cls(
            root=root,
            embodiment=embodiment if embodiment.fps else replace(embodiment, fps=fps),
            fps=fps,
            bounds=bounds,
            state=_vectors(root, columns, embodiment.state, held),
            action=_vectors(root, columns, embodiment.action, held),
            timestamp=timestamp,
            tasks=tasks,
            task_index=torch.from_numpy(columns["task_index"].astype(np.int32)),
            tolerant=missing == "report",
            missing=tuple(gone),
            pictures=Pictures(root, fps, bounds, timestamp, layout.tables, shown, decoder, held.start),
            first=held.start,
        )

    @cached_property
    def content_hash(self) -> str:
        """Of everything that is stored, pictures included; the same for a copy elsewhere. Read when first asked for.

        A file that is missing counts as such, so the hash changes when it comes back.
        """
        layout = Layout.read(self.root, checks.read_info(self.root))
        missing = set(self.missing)
        stored = {self.root / path for path in layout.stored() if path not in missing}
        files = stored | {path for path in (self.root / "meta").rglob("*") if path.is_file()}
        try:
            return remembered_digest(self.root, files)
        except OSError as error:
            raise DatasetError(f"dataset {self.root} changed since it was opened: {error}") from error

    @property
    def num_frames(self) -> int:
        """Frames in all episodes, held or not."""
        return int(self.bounds[-1, 1])

    @property
    def held(self) -> range:
        """The frames whose rows are held."""
        return range(self.first, self.first + len(self.timestamp))

    def rows(self, frames: Tensor) -> Tensor:
        """Where the rows of frames lie in `state`, `action`, `timestamp` and `task_index`: int64 of the same shape."""
        if len(self.timestamp) == self.num_frames:
            return frames
        held = self.held
        inside = not frames.numel() or (held.start <= int(frames.min()) and int(frames.max()) < held.stop)
        assert inside, f"only frames {held.start} to {held.stop - 1} of {self.root} are held"
        return frames - self.first

    def whole(self) -> "Source":
        """The dataset with all of its frames, opened again where only some are held. Raises as `open` does."""
        if len(self.held) == self.num_frames:
            return self
        missing: Missing = "report" if self.tolerant else "refuse"
        return Source.open(self.root, self.embodiment, missing=missing, decoder=self.pictures.decoder)

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
        return self.tasks[int(self.task_index[self.rows(torch.tensor(frame))])]

    def decode(self, episode: int, camera: str) -> Tensor:
        """Decode all pictures of one camera in one episode: `(T, 3, h, w)` uint8 at the recorded size.

        Raises EpisodeError (a DatasetError) naming the file when it cannot be decoded.
        """
        return torch.cat(list(self.decode_runs(episode, camera)))

    def decode_runs(self, episode: int, camera: str) -> Iterator[Tensor]:
        """Decode as `decode` does, a bounded number of frames at a time: long episodes need little memory."""
        frames = torch.arange(*self.bounds[episode].tolist())
        return (pictures for _, pictures in self.pictures.decode(frames, camera))

    def decode_frames(self, frames: Tensor, camera: str) -> Tensor:
        """Decode frames of one camera in any order, also repeated: `(n,)` int64 → `(n, 3, h, w)` uint8.

        Each is decoded once, those near each other in one go; at least one is asked for.
        Raises EpisodeError (a DatasetError) naming episode, camera and file when one cannot be decoded.
        """
        wanted, back = frames.unique(return_inverse=True)
        return torch.cat([pictures for _, pictures in self.pictures.decode(wanted, camera)])[back]


@dataclass(frozen=True)
class Tables:
    """What a dataset's states and actions are read from. digest: of the content. episodes: how many there are."""

    digest: str
    episodes: int

    @classmethod
    def identify(cls, root: Path, embodiment: Embodiment) -> Self:
        """Hash the tables, and which frames are an episode, without reading them: no videos, whole or not.

        Raises DatasetError as `Source.open` does, but for what is wrong inside a table.
        """
        info = checks.read_info(root)
        checks.check_features(root, info, embodiment)
        with _explained(root):
            layout = Layout.read(root, info)
            tables = layout.tables.paths()
            checks.check_files(root, absent(root, tables))
            files = {root / path for path in tables} | set((root / "meta" / "episodes").rglob("*.parquet"))
            return cls(remembered_digest(root, files), len(layout.bounds))


@contextmanager
def _explained(root: Path) -> Iterator[None]:
    try:
        yield
    except DatasetError:
        raise
    except Exception as error:  # an edited info.json can name anything
        raise DatasetError(f"LeRobot cannot open dataset {root}: {type(error).__name__}: {error}") from error


def _vectors(root: Path, columns: Columns, fields: tuple[Field, ...], held: range) -> Tensor:
    """Concatenated features, `(R, D)` float32. Raises DatasetError for another width than stated, or NaN."""
    parts = [np.empty((len(held), 0), np.float32)]
    for item in fields:
        values = columns[item.key].reshape(len(held), -1)
        if values.shape[1] != len(item.names):
            raise DatasetError(
                f"feature {item.key!r} of {root} holds {values.shape[1]} numbers a frame, its meta/info.json says "
                f"{len(item.names)}. Copy or record it again."
            )
        values = values.astype(np.float32, copy=False)
        if not np.isfinite(values).all():
            frame = held[int((~np.isfinite(values)).any(1).argmax())]
            raise DatasetError(f"feature {item.key!r} of {root} is NaN or infinite at frame {frame}.")
        parts.append(values)
    return torch.from_numpy(np.concatenate(parts, axis=1))
