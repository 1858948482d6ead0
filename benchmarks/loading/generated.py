"""Generated LeRobot v3 datasets: one is really recorded, the others have the same videos and other numbers.

Videos and metadata are hard links, so a thousand datasets take little room; each has tables of its own.
"""

import json
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from loading.window import ACTION, CAMERAS, CHUNK, FPS, PIXELS, STATE
from vla_mot.data.recorder import dataset_features, record_dataset
from vla_mot.data.source import Source
from vla_mot.data.statistics import compute_statistics
from vla_mot.robots.embodiment import Embodiment
from vla_mot.robots.statistics_file import native_content

JOINTS = 14


@dataclass(frozen=True)
class Shape:
    """Episodes of a dataset, and frames of each."""

    episodes: int
    frames: int

    def __str__(self) -> str:
        return f"{self.episodes}x{self.frames}"

    @property
    def total(self) -> int:
        """Frames of the dataset."""
        return self.episodes * self.frames


def robot() -> Embodiment:
    """Two cameras, 14 joints."""
    names = [f"joint{number}" for number in range(JOINTS)]
    vector = {"names": names, "units": ["rad"] * JOINTS}
    return Embodiment.from_dict(
        {
            "name": "generated",
            "fps": FPS,
            "state": [{"key": STATE, **vector}],
            "action": [{"key": ACTION, **vector, "delta": [True] * JOINTS}],
            "cameras": list(CAMERAS),
        }
    )


def generate(folder: Path, shape: Shape, count: int, seed: int) -> Path:
    """Return a folder of `count` datasets, made unless it is there; `robot.yaml` and `stats.json` lie beside it."""
    place = folder / str(shape) / str(count)
    if place.exists():
        return place
    original = place.parent / "original"
    if not original.exists():
        _record(original, shape, seed)
        (place.parent / "robot.yaml").write_text(json.dumps(robot().to_dict()))
        counted = compute_statistics(Source.open(original, robot()), CHUNK, "delta")
        (place.parent / "stats.json").write_text(json.dumps(native_content([counted])))
    for number in range(count):
        _clone(original, place.with_suffix(".unfinished") / f"set{number:04d}", seed + number)
    place.with_suffix(".unfinished").rename(place)
    return place


def _record(root: Path, shape: Shape, seed: int) -> None:
    random = np.random.default_rng(seed)

    def frames(episode: int) -> Iterator[dict]:
        for time in range(shape.frames):
            pictures = {key: _picture(time, episode + place) for place, key in enumerate(CAMERAS)}
            numbers = {key: random.normal(size=JOINTS).astype(np.float32) for key in (STATE, ACTION)}
            yield pictures | numbers | {"task": f"pick block {episode % 2}"}

    episodes = (frames(episode) for episode in range(shape.episodes))
    features = dataset_features(robot(), PIXELS, PIXELS)
    record_dataset(root, "generated/original", FPS, features, episodes, robot().name)


def _picture(time: int, seed: int) -> np.ndarray:
    """A square that moves over a textured ground: `(H, W, 3)` uint8."""
    rows, columns = np.mgrid[:PIXELS, :PIXELS]
    ground = 128 + 40 * np.sin(rows / 5 + seed) * np.cos(columns / 7)
    picture = np.repeat(ground[..., None], 3, axis=2)
    top, left = (time * 3 + seed * 11) % (PIXELS - 12), (time * 2 + seed * 17) % (PIXELS - 12)
    picture[top : top + 12, left : left + 12] = (220, 40, 40) if seed % 2 else (40, 70, 220)
    return picture.astype(np.uint8)


def _clone(original: Path, root: Path, seed: int) -> None:
    """The same episodes with every vector in another row: other content, the same distribution."""
    shutil.copytree(original, root, copy_function=os.link)
    random = np.random.default_rng(seed)
    for path in (root / "data").rglob("*.parquet"):
        table = pq.read_table(path)
        for key in (STATE, ACTION):
            place, field = table.schema.get_field_index(key), table.schema.field(key)
            order = pa.array(random.permutation(len(table)))
            table = table.set_column(place, field, table.column(key).take(order))
        path.unlink()  # a link: the original keeps its own
        pq.write_table(table, path, compression="snappy", use_dictionary=True)
