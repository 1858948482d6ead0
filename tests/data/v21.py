"""Writes a LeRobot v2.1 dataset by hand: one parquet file per episode, one video per episode and camera."""

import json
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from tests.data.conftest import square

CAMERAS = ("observation.images.top", "observation.images.wrist")
JOINTS = {"motors": ["shoulder", "elbow", "gripper"]}
LENGTHS = (9, 14, 6)
TASKS = ("pick the red block", "put it away")


@dataclass(frozen=True)
class Legacy:
    """A v2.1 dataset on disk, and what was written: `(N, 3)` each, and the task of each frame."""

    root: Path
    state: np.ndarray
    action: np.ndarray
    tasks: list[str]


def write_legacy(root: Path, fps: float = 10, lengths: tuple[int, ...] = LENGTHS) -> Legacy:
    random = np.random.default_rng(0)
    state, action = random.normal(size=(2, sum(lengths), 3)).astype(np.float32)
    for episode, length in enumerate(lengths):
        start = sum(lengths[:episode])
        rows = slice(start, start + length)
        _write_table(root, episode, start, fps, state[rows], action[rows])
        for view, camera in enumerate(CAMERAS):
            path = root / "videos/chunk-000" / camera / f"episode_{episode:06d}.mp4"
            write_video(path, [square(time + 5 * view, episode) for time in range(length)], fps)
    _write_meta(root, fps, lengths, state, action)
    tasks = [TASKS[episode % 2] for episode, length in enumerate(lengths) for _ in range(length)]
    return Legacy(root, state, action, tasks)


def write_video(path: Path, frames: list[np.ndarray], fps: float) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as container:
        height, width = frames[0].shape[:2]
        stream = container.add_stream("h264", Fraction(str(fps)), options={"g": "2", "crf": "10"})
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode(None))


def _write_table(
    root: Path, episode: int, start: int, fps: float, state: np.ndarray, action: np.ndarray
) -> None:
    count = len(state)
    columns = {
        "observation.state": pa.FixedSizeListArray.from_arrays(pa.array(state.ravel()), 3),
        "action": pa.FixedSizeListArray.from_arrays(pa.array(action.ravel()), 3),
        "timestamp": pa.array((np.arange(count) / fps).astype(np.float32)),
        "frame_index": pa.array(np.arange(count)),
        "episode_index": pa.array(np.full(count, episode)),
        "index": pa.array(np.arange(start, start + count)),
        "task_index": pa.array(np.full(count, episode % 2)),
    }
    path = root / "data/chunk-000" / f"episode_{episode:06d}.parquet"
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(columns), path)


def _write_meta(
    root: Path, fps: float, lengths: tuple[int, ...], state: np.ndarray, action: np.ndarray
) -> None:
    picture = {"dtype": "video", "shape": [48, 48, 3], "names": ["height", "width", "channels"]}
    about = {"video.fps": fps, "video.codec": "h264", "video.pix_fmt": "yuv420p", "has_audio": False}
    vector = {"dtype": "float32", "shape": [3], "names": JOINTS}
    number = {"dtype": "int64", "shape": [1], "names": None}
    info = {
        "codebase_version": "v2.1",
        "robot_type": "so100",
        "total_episodes": len(lengths),
        "total_frames": sum(lengths),
        "total_tasks": len(TASKS),
        "total_videos": len(CAMERAS) * len(lengths),
        "total_chunks": 1,
        "chunks_size": 1000,
        "fps": fps,
        "splits": {"train": f"0:{len(lengths)}"},
        "data_path": "data/chunk-{episode_chunk:03d}/episode_{episode_index:06d}.parquet",
        "video_path": "videos/chunk-{episode_chunk:03d}/{video_key}/episode_{episode_index:06d}.mp4",
        "features": {
            "observation.state": vector,
            "action": vector,
            **{camera: picture | {"info": about} for camera in CAMERAS},
            "timestamp": {"dtype": "float32", "shape": [1], "names": None},
            **dict.fromkeys(("frame_index", "episode_index", "index", "task_index"), number),
        },
    }
    (root / "meta").mkdir(parents=True)
    (root / "meta/info.json").write_text(json.dumps(info))
    _write_lines(root / "meta/tasks.jsonl", [{"task_index": i, "task": task} for i, task in enumerate(TASKS)])
    episodes, numbers = [], []
    for episode, length in enumerate(lengths):
        rows = slice(sum(lengths[:episode]), sum(lengths[: episode + 1]))
        episodes.append({"episode_index": episode, "tasks": [TASKS[episode % 2]], "length": length})
        stats = {"observation.state": _stats(state[rows]), "action": _stats(action[rows])}
        stats |= {camera: _stats(np.full((length, 3, 1, 1), 0.5)) for camera in CAMERAS}
        numbers.append({"episode_index": episode, "stats": stats})
    _write_lines(root / "meta/episodes.jsonl", episodes)
    _write_lines(root / "meta/episodes_stats.jsonl", numbers)


def _stats(rows: np.ndarray) -> dict[str, list]:
    numbers = {name: getattr(rows, name)(axis=0).tolist() for name in ("min", "max", "mean", "std")}
    return numbers | {"count": [len(rows)]}


def _write_lines(path: Path, entries: list[dict]) -> None:
    path.write_text("".join(json.dumps(entry) + "\n" for entry in entries))
