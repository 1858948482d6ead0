"""Writes demonstrations as a LeRobot v3 dataset with video, through lerobot's own writer.

The defaults suit small rendered pictures: H.264 with full-resolution colour (`yuv444p`; chroma subsampling costs 18 dB
on 64 px and moves coloured edges) and a key frame every second frame, so that random reads stay cheap.
"""

import logging
import shutil
import uuid
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vla_mot.data.quiet import quiet_media
from vla_mot.errors import DatasetError
from vla_mot.robots.embodiment import Embodiment

if TYPE_CHECKING:
    from lerobot.datasets.lerobot_dataset import LeRobotDataset

log = logging.getLogger(__name__)

Frame = Mapping[str, Any]
"""One time step: image features as `(H, W, 3)` uint8, vectors as float32, and `task`, the instruction."""

_QUEUE = 1_000_000
"""lerobot drops frames without an error when its encoder's queue is full, so ours never is."""


@dataclass(frozen=True)
class VideoQuality:
    """How pictures are encoded: crf as of x264 (lower is better), g frames from key frame to key frame.

    file_mb: size at which a new video file begins. lerobot rewrites the current file for every episode, so the
    smaller the files, the closer recording time stays to linear in the number of episodes.
    """

    codec: str = "h264"
    pixel_format: str = "yuv444p"
    crf: int = 10
    g: int = 2
    preset: str = "ultrafast"
    file_mb: int = 1


def dataset_features(embodiment: Embodiment, height: int, width: int) -> dict[str, dict[str, Any]]:
    """Return LeRobot's feature table for an embodiment whose cameras give `(height, width, 3)` pictures."""
    vectors = {
        field.key: {"dtype": "float32", "shape": (len(field.names),), "names": list(field.names)}
        for field in (*embodiment.state, *embodiment.action)
    }
    cameras = {
        key: {"dtype": "video", "shape": (height, width, 3), "names": ["height", "width", "channels"]}
        for _, key in embodiment.present_cameras
    }
    return cameras | vectors


def record_dataset(
    root: Path | str,
    repo_id: str,
    fps: int,
    features: Mapping[str, Mapping[str, Any]],
    episodes: Iterable[Iterable[Frame]],
    robot_type: str | None = None,
    quality: VideoQuality | None = None,
) -> int:
    """Write episodes, consumed one frame at a time, and return the number of frames.

    The dataset appears under `root` only when it is complete and every frame was found again in its videos.
    Raises DatasetError when `root` exists, there is no episode, an episode is empty, or frames were lost, and OSError
    when the disk does not take it.
    """
    with _unfinished(Path(root)) as work, _disk_errors():
        frames = _record(
            _create(work, repo_id, fps, features, robot_type, quality or VideoQuality()), episodes
        )
        _check_videos(work, [key for key, spec in features.items() if spec["dtype"] == "video"], frames)
    log.info("recorded %d frames in %s", frames, root)
    return frames


@contextmanager
def _unfinished(root: Path) -> Iterator[Path]:
    """Give a temporary name that becomes `root` when the block ends well, and is removed otherwise."""
    if root.exists():
        raise DatasetError(f"{root} exists already. Choose another output folder, or remove it first.")
    root.parent.mkdir(parents=True, exist_ok=True)
    work = root.with_name(f".{root.name}.recording-{uuid.uuid4().hex[:8]}")
    try:
        with quiet_media():
            yield work
        work.rename(root)
    finally:
        shutil.rmtree(work, ignore_errors=True)


@contextmanager
def _disk_errors() -> Iterator[None]:
    """lerobot's encoder turns what the disk says into a RuntimeError of its own."""
    try:
        yield
    except RuntimeError as error:
        if "Errno" not in str(error):
            raise
        raise OSError(f"nothing was kept of the recording, which could not be written: {error}") from error


def _create(
    root: Path, repo_id: str, fps: int, features: Mapping, robot_type: str | None, quality: VideoQuality
) -> "LeRobotDataset":
    from lerobot.configs import RGBEncoderConfig
    from lerobot.datasets.lerobot_dataset import LeRobotDataset

    encoder = RGBEncoderConfig(
        vcodec=quality.codec,
        pix_fmt=quality.pixel_format,
        crf=quality.crf,
        g=quality.g,
        preset=quality.preset,
    )
    return LeRobotDataset.create(
        repo_id=repo_id,
        fps=fps,
        features={key: dict(spec) for key, spec in features.items()},
        root=root,
        robot_type=robot_type,
        rgb_encoder=encoder,
        streaming_encoding=True,
        encoder_queue_maxsize=_QUEUE,
        encoder_threads=1,
        video_files_size_in_mb=quality.file_mb,
        video_backend="pyav",
    )


def _record(dataset: "LeRobotDataset", episodes: Iterable[Iterable[Frame]]) -> int:
    """Feed the writer. One episode is held in its queue at most."""
    try:
        for number, episode in enumerate(episodes):
            length = 0
            for frame in episode:
                dataset.add_frame(dict(frame))
                length += 1
            if length == 0:
                raise DatasetError(f"episode {number} has no frames.")
            dataset.save_episode()
    finally:
        # lerobot's own clean-up on garbage collection would otherwise run later, and write into a removed folder.
        if dataset.writer is not None:
            dataset.writer.cancel_pending_videos()
        dataset.finalize()
    if dataset.meta.total_episodes == 0:
        raise DatasetError("there is no episode to record.")
    return int(dataset.meta.total_frames)


def _check_videos(root: Path, cameras: list[str], frames: int) -> None:
    for camera in cameras:
        found = sum(_count_frames(path) for path in (root / "videos" / camera).rglob("*.mp4"))
        if found != frames:
            raise DatasetError(
                f"the videos of {camera!r} hold {found} of {frames} frames: the encoder lost some. Nothing was kept; "
                "record again, with another codec if it repeats."
            )


def _count_frames(path: Path) -> int:
    import av

    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        return sum(packet.size > 0 for packet in container.demux(stream))
