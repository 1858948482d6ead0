"""LeRobot v2.1 datasets: turned into v3.0 by lerobot's own converter, and compared with what came out.

A v2.1 dataset has one parquet file per episode and one video per episode and camera, and its metadata in JSON lines.
"""

import contextlib
import errno
import io
import json
import shutil
import sys
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from vla_mot.data.decoder import choose_decoder, decode_times
from vla_mot.data.quiet import quiet_media
from vla_mot.data.source import Source
from vla_mot.errors import DatasetError, nearest
from vla_mot.robots.features import dataset_features
from vla_mot.robots.generic import infer_embodiment, rank_cameras

_META = ("meta/episodes.jsonl", "meta/episodes_stats.jsonl", "meta/tasks.jsonl")
_VIDEO_PATH = "videos/chunk-{episode_chunk:03d}/{video_key}/episode_{episode_index:06d}.mp4"
_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES)
_SPARE = 2**20  # bytes that metadata may take beyond the input's own size
_SAME = 2.0  # of 255, mean difference of two decoded pictures that are the same


def read_legacy_info(root: Path) -> dict[str, Any]:
    """Return `meta/info.json` of a whole LeRobot v2.1 dataset.

    Raises DatasetError when it is no dataset, of another version, or files of it are missing.
    """
    if not root.is_dir():
        siblings = [path.name for path in root.parent.iterdir()] if root.parent.is_dir() else []
        raise DatasetError(f"dataset folder {root} does not exist.{nearest(root.name, siblings)}")
    path = root / "meta" / "info.json"
    if not path.is_file():
        found = ", ".join(sorted(entry.name for entry in root.iterdir())[:8]) or "nothing"
        raise DatasetError(f"{root} is not a LeRobot dataset: it has no meta/info.json (found: {found}).")
    try:
        info = json.loads(path.read_text(encoding="utf-8"))
        version = str(info["codebase_version"])
        episodes = int(info["total_episodes"])
        features = dataset_features(info)
    except (KeyError, TypeError, ValueError) as error:
        raise DatasetError(f"{path} is not readable as LeRobot's dataset information: {error!r}.") from error
    if version.startswith("v3"):
        raise DatasetError(f"{root} has LeRobot format {version} already; it needs no conversion.")
    if version != "v2.1":
        raise DatasetError(
            f"{root} has LeRobot format {version}; lerobot converts v2.1. Bring it to v2.1 first, with the lerobot "
            "release that came after the one that recorded it."
        )
    missing = _missing(root, episodes, [key for key, spec in features.items() if spec["dtype"] == "video"])
    if missing:
        raise DatasetError(f"{root} is no whole v2.1 dataset: {'; '.join(missing)}. Copy it again.")
    return dict(info)


def _missing(root: Path, episodes: int, cameras: list[str]) -> list[str]:
    missing = [f"{name} is missing" for name in _META if not (root / name).is_file()]
    for what, pattern in (("data", "data/*/*.parquet"), *((c, f"videos/*/{c}/*.mp4") for c in cameras)):
        found = sum(1 for _ in root.glob(pattern))
        if found != episodes:
            missing.append(f"{what}: {found} files for {episodes} episodes ({pattern})")
    return missing


@dataclass(frozen=True)
class Converted:
    """What a converted dataset holds; cameras: those whose pictures were compared."""

    episodes: int
    frames: int
    fps: float
    cameras: tuple[str, ...]


def convert_legacy(root: Path, output: Path) -> Converted:
    """Convert a v2.1 dataset into a new folder, and leave the old one as it is.

    root: the v2.1 dataset. output: the v3.0 dataset's folder, absent; it appears when it is complete and compared.
    Raises DatasetError when the input is none, the converter fails, or the result is not what went in; OSError when
    the disk is full.
    """
    info = read_legacy_info(root)
    output.parent.mkdir(parents=True, exist_ok=True)
    _require_space(root, output.parent)
    with tempfile.TemporaryDirectory(dir=output.parent, prefix=f".{output.name}.") as place:
        work = Path(place) / "dataset"
        _link(root, work)
        with _explained(root), _silent(Path(place) / "cache"):
            _call_converter(work)
        _keep_rate(work, info)
        cameras = _compare(root, info, work)
        work.rename(output)
    return Converted(int(info["total_episodes"]), int(info["total_frames"]), float(info["fps"]), cameras)


def _require_space(root: Path, place: Path) -> None:
    needed = sum(path.stat().st_size for path in root.rglob("*") if path.is_file()) + _SPARE
    free = shutil.disk_usage(place).free
    if free < needed:
        raise OSError(
            errno.ENOSPC,
            f"the converted dataset needs about {needed / 1e9:.1f} GB, {free / 1e9:.1f} GB are free",
            place,
        )


def _link(root: Path, work: Path) -> None:
    """A folder that holds the input's parts by reference: the converter renames what it is given."""
    if "'" in str(root.resolve()):
        raise DatasetError(
            f"lerobot's converter cannot read a path with a quotation mark in it: {root.resolve()}."
        )
    work.mkdir()
    for part in ("meta", "data", "videos"):
        if (root / part).is_dir():
            (work / part).symlink_to((root / part).resolve(), target_is_directory=True)


def _call_converter(work: Path) -> None:
    from lerobot.scripts.convert_dataset_v21_to_v30 import convert_dataset

    convert_dataset(repo_id=f"local/{work.name}", root=work, push_to_hub=False)


@contextlib.contextmanager
def _explained(root: Path) -> Iterator[None]:
    """Say what the converter stumbled over; what the disk refuses is no fault of the dataset."""
    try:
        yield
    except Exception as error:
        cause: BaseException = error
        while (deeper := cause.__cause__ or cause.__context__) is not None:
            cause = deeper
        for fault in (error, cause):
            if isinstance(fault, OSError) and fault.errno in _DISK:
                raise fault from error
        raise DatasetError(
            f"lerobot's converter failed on {root}: {type(cause).__name__}: {cause}. {root} is unchanged; check "
            "it with the lerobot release that recorded it."
        ) from error


@contextlib.contextmanager
def _silent(cache: Path) -> Iterator[None]:
    """Progress bars only on a terminal, and tables of the `datasets` library in a cache that goes away."""
    import datasets

    before = datasets.config.HF_DATASETS_CACHE
    datasets.config.HF_DATASETS_CACHE = cache
    heard = contextlib.nullcontext() if sys.stderr.isatty() else contextlib.redirect_stderr(io.StringIO())
    try:
        with quiet_media(), heard:
            yield
    finally:
        datasets.config.HF_DATASETS_CACHE = before


def _keep_rate(work: Path, info: Mapping[str, Any]) -> None:
    """The converter cuts a rate such as 29.97 to whole frames per second; its time stamps stay right, so undo that."""
    path = work / "meta" / "info.json"
    converted = json.loads(path.read_text(encoding="utf-8"))
    if converted["fps"] == info["fps"]:
        return
    for part in (converted, *converted["features"].values()):
        if part.get("fps") == int(info["fps"]):
            part["fps"] = info["fps"]
    path.write_text(json.dumps(converted, indent=4, ensure_ascii=False), encoding="utf-8")


# ---- is it the same? ----------------------------------------------------------------------------------------


def _compare(root: Path, info: Mapping[str, Any], work: Path) -> tuple[str, ...]:
    """Open the result, count its frames, look at pictures; return the cameras that were compared.

    Raises DatasetError when they are not the input's. A dataset without cameras opens as no embodiment.
    """
    if not rank_cameras(dataset_features(info)).kept:
        return ()
    try:
        source = Source.open(work, infer_embodiment(info))
    except DatasetError as error:
        raise _another(root, str(error).replace(str(work), "the result")) from error
    wrong = []
    if source.num_frames != info["total_frames"]:
        wrong.append(f"{source.num_frames} frames instead of {info['total_frames']}")
    if _lengths(root) != (source.bounds[:, 1] - source.bounds[:, 0]).tolist():
        wrong.append("episodes of other lengths")
    videos = tuple(key for key in source.cameras if info["features"][key]["dtype"] == "video")
    wrong += [
        f"other pictures of {camera} in episode {episode}"
        for camera in videos
        for episode in sorted({0, source.num_episodes - 1})
        if not _same_pictures(root, info, source, episode, camera)
    ]
    if wrong:
        raise _another(root, ", ".join(wrong))
    return videos


def _another(root: Path, what: str) -> DatasetError:
    return DatasetError(
        f"{root} and what lerobot's converter made of it differ: {what.rstrip('.')}. Nothing was written."
    )


def _lengths(root: Path) -> list[int]:
    lines = (root / "meta" / "episodes.jsonl").read_text(encoding="utf-8").splitlines()
    episodes = [json.loads(line) for line in lines if line.strip()]
    return [int(episode["length"]) for episode in sorted(episodes, key=lambda e: int(e["episode_index"]))]


def _same_pictures(root: Path, info: Mapping[str, Any], source: Source, episode: int, camera: str) -> bool:
    """Whether the first and the last picture of an episode are those of its old video, which was copied as it is."""
    start, end = source.bounds[episode].tolist()
    template = info.get("video_path") or _VIDEO_PATH
    chunk = episode // int(info.get("chunks_size") or 1000)
    old = root / template.format(video_key=camera, episode_chunk=chunk, episode_index=episode)
    for frame in sorted({start, end - 1}):
        new = source.decode_frames(torch.tensor([frame]), camera)
        then = decode_times(old, [float(source.timestamp[frame])], 0.5 / source.fps, choose_decoder())
        if new.shape != then.shape or float((new.float() - then.float()).abs().mean()) > _SAME:
            return False
    return True
