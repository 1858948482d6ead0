"""How a dataset maps to a robot, and everything that does not fit: nothing stops at the first problem.

Legend: `N` frames of the dataset, `E` episodes.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vla_mot.data.checks import misfits, read_info
from vla_mot.data.layout import Layout
from vla_mot.data.remarks import remarks, shown
from vla_mot.data.source import Source
from vla_mot.errors import ConfigError, DatasetError
from vla_mot.robots.catalog import AUTO, GENERIC, embodiment_of
from vla_mot.robots.embodiment import Embodiment, Field
from vla_mot.robots.features import camera_size, dimension_names, feature_width, is_camera

_BOOKKEEPING = (
    "timestamp",
    "frame_index",
    "episode_index",
    "index",
    "task_index",
    "next.done",
    "next.reward",
)
_QUANTILES = (0.0, 0.1, 0.5, 0.9, 1.0)


@dataclass(frozen=True)
class Dimension:
    """One dimension of the state or the action.

    kind: `state` or `action`; slot: its place there. feature, index: where in the dataset it stands; told: what the
    dataset calls it, empty where it does not say. name, unit, delta: as the embodiment has it.
    low, high: the range seen in all frames, in that unit; None where it could not be read.
    """

    kind: str
    slot: int
    feature: str
    index: int
    told: str
    name: str
    unit: str
    delta: bool
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True)
class CameraSlot:
    """A camera slot: its image feature (None: absent), recorded (height, width) in pixels, and how it is stored."""

    slot: int
    key: str | None
    size: tuple[int, int] | None
    stored: str


@dataclass(frozen=True)
class TaskCount:
    """An instruction, and in how many episodes and frames it is given."""

    task: str
    episodes: int
    frames: int


@dataclass(frozen=True)
class Inspection:
    """What was found about a dataset.

    info: its `meta/info.json`. bytes: on disk. lengths: of its episodes in frames, `(E,)`, empty where unreadable.
    embodiment: with which it is read; inferred: that is the generic one, because none was known.
    unused: features that train nothing. problems: why it cannot be trained on. notes: what deserves a look.
    source: opened with what does fit; None where nothing can be opened.
    """

    root: Path
    info: Mapping[str, Any]
    bytes: int
    lengths: Tensor
    tasks: tuple[TaskCount, ...]
    embodiment: Embodiment | None
    inferred: bool
    dimensions: tuple[Dimension, ...]
    cameras: tuple[CameraSlot, ...]
    unused: tuple[str, ...]
    problems: tuple[str, ...]
    notes: tuple[str, ...]
    source: Source | None

    @property
    def fps(self) -> float:
        """Frames per second."""
        return float(self.info["fps"])

    @property
    def frames(self) -> int:
        """Of all episodes together, as the dataset states it; 0 where it states no number."""
        told = self.info.get("total_frames")
        return told if isinstance(told, int) else 0

    @property
    def hours(self) -> float:
        """Of all episodes together."""
        return self.frames / self.fps / 3600

    def length_quantiles(self) -> dict[str, int]:
        """Shortest, 10 %, median, 90 % and longest episode in frames; empty where lengths are unreadable."""
        if not len(self.lengths):
            return {}
        values = self.lengths.double().quantile(torch.tensor(_QUANTILES, dtype=torch.float64)).round().int()
        return dict(zip(("shortest", "10 %", "median", "90 %", "longest"), values.tolist(), strict=True))


def inspect_dataset(root: Path, wanted: str = AUTO, extra: Sequence[Path] = ()) -> Inspection:
    """Look at a dataset as one embodiment's.

    wanted, extra: as in `embodiment_of`; where that names none, the generic one is shown, and a problem said.
    Raises DatasetError when the folder is no LeRobot v3 dataset, so that there is nothing to show.
    """
    info = read_info(root)
    problems: list[str] = []
    embodiment, inferred = _choose(info, wanted, extra, problems)
    if embodiment is not None:
        problems += misfits(info, embodiment)
    source = _open(root, info, embodiment, problems)
    dimensions = () if embodiment is None else _dimensions(info, embodiment, source)
    return Inspection(
        root=root,
        info=info,
        bytes=sum(path.stat().st_size for path in root.rglob("*") if path.is_file()),
        lengths=_lengths(root, info, source),
        tasks=() if source is None else _tasks(source),
        embodiment=embodiment,
        inferred=inferred,
        dimensions=dimensions,
        cameras=() if embodiment is None else tuple(_cameras(info, embodiment)),
        unused=_unused(info, embodiment),
        problems=tuple(dict.fromkeys(problems)),
        notes=() if source is None else tuple(remarks(source)),
        source=source,
    )


def _choose(
    info: Mapping[str, Any], wanted: str, extra: Sequence[Path], problems: list[str]
) -> tuple[Embodiment | None, bool]:
    try:
        return embodiment_of(info, wanted, extra), wanted.lower() == GENERIC
    except ConfigError as error:
        problems.append(str(error))
    try:
        return embodiment_of(info, GENERIC), True
    except ConfigError as error:
        if str(error) not in problems:
            problems.append(str(error))
        return None, True


def _open(
    root: Path, info: Mapping[str, Any], embodiment: Embodiment | None, problems: list[str]
) -> Source | None:
    """Open with the fields and cameras that do fit, so that these can be shown whatever the others are."""
    fitting = None if embodiment is None else _fitting(info, embodiment)
    if fitting is None:
        return None
    try:
        source = Source.open(root, fitting, missing="report")
    except DatasetError as error:
        problems.append(str(error))
        return None
    if source.missing:
        problems.append(f"{len(source.missing)} of its videos are missing: {shown(source.missing)}")
    return source


def _fitting(info: Mapping[str, Any], embodiment: Embodiment) -> Embodiment | None:
    features = info["features"]

    def fits(field: Field) -> bool:
        spec = features.get(field.key)
        if spec is None or is_camera(spec) or feature_width(spec) != len(field.names):
            return False
        told = dimension_names(spec)  # other names may mean the same; in another order they do not
        return told == field.names or sorted(told) != sorted(field.names)

    state = tuple(field for field in embodiment.state if fits(field))
    action = tuple(field for field in embodiment.action if fits(field))
    if state != embodiment.state or action != embodiment.action:
        action = tuple(replace(field, delta=()) for field in action)  # another place: no delta of the same
    cameras = tuple(
        key if key and is_camera(features.get(key, {"dtype": ""})) else None for key in embodiment.cameras
    )
    if not any(cameras):
        return None
    return replace(embodiment, fps=None, state=state, action=action, cameras=cameras)


# ---- what there is ------------------------------------------------------------------------------------------


def _lengths(root: Path, info: Mapping[str, Any], source: Source | None) -> Tensor:
    try:
        bounds = torch.from_numpy(Layout.read(root, info).bounds) if source is None else source.bounds
    except (DatasetError, TypeError, ValueError):  # said when the dataset was opened
        return torch.empty(0, dtype=torch.int64)
    return bounds[:, 1] - bounds[:, 0]


def _tasks(source: Source) -> tuple[TaskCount, ...]:
    """The instructions that are given, the most frequent first."""
    count = len(source.tasks)
    frames = torch.bincount(source.task_index.long(), minlength=count)
    episode = torch.repeat_interleave(
        torch.arange(source.num_episodes), source.bounds[:, 1] - source.bounds[:, 0]
    )
    pairs = torch.stack([episode, source.task_index.long()], dim=1).unique(dim=0)
    episodes = torch.bincount(pairs[:, 1], minlength=count)
    counts = [TaskCount(*row) for row in zip(source.tasks, episodes.tolist(), frames.tolist(), strict=True)]
    return tuple(sorted((c for c in counts if c.frames), key=lambda c: (-c.frames, c.task)))


def _dimensions(
    info: Mapping[str, Any], embodiment: Embodiment, source: Source | None
) -> tuple[Dimension, ...]:
    seen = {} if source is None else _ranges(source)
    found = []
    for kind, fields in (("state", embodiment.state), ("action", embodiment.action)):
        slot = 0
        for field in fields:
            told = dimension_names(info["features"].get(field.key, {}))
            for index, (name, unit, delta) in enumerate(
                zip(field.names, field.units, field.delta, strict=True)
            ):
                own = told[index] if len(told) == len(field.names) else ""
                low, high = seen.get((kind, field.key, index), (None, None))
                found.append(Dimension(kind, slot, field.key, index, own, name, unit, delta, low, high))
                slot += 1
    return tuple(found)


def _ranges(source: Source) -> dict[tuple[str, str, int], tuple[float, float]]:
    ranges: dict[tuple[str, str, int], tuple[float, float]] = {}
    parts = (
        ("state", source.embodiment.state, source.state),
        ("action", source.embodiment.action, source.action),
    )
    for kind, fields, values in parts:
        places = [(kind, field.key, index) for field in fields for index in range(len(field.names))]
        if places:
            lows, highs = values.amin(0).tolist(), values.amax(0).tolist()
            ranges |= dict(zip(places, zip(lows, highs, strict=True), strict=True))
    return ranges


def _cameras(info: Mapping[str, Any], embodiment: Embodiment) -> list[CameraSlot]:
    slots = []
    for slot, key in enumerate(embodiment.cameras):
        spec = info["features"].get(key)
        if key is None or spec is None or not is_camera(spec):
            slots.append(CameraSlot(slot, key, None, "absent" if key is None else "missing"))
            continue
        size = camera_size(spec)
        slots.append(CameraSlot(slot, key, None if size is None else size[:2], stored_as(spec)))
    return slots


def stored_as(spec: Mapping[str, Any]) -> str:
    """How a camera's pictures are stored: `image`, or the codec of its videos as far as the dataset states it."""
    about = spec.get("info") or spec.get("video_info")
    codec = about.get("video.codec") if isinstance(about, Mapping) else None
    return str(codec or spec["dtype"])


def _unused(info: Mapping[str, Any], embodiment: Embodiment | None) -> tuple[str, ...]:
    used = set(_BOOKKEEPING)
    if embodiment is not None:
        used |= {field.key for field in (*embodiment.state, *embodiment.action)} | set(
            map(str, embodiment.cameras)
        )
    return tuple(key for key in info["features"] if key not in used)
