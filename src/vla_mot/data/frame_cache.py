"""Decoded frames in one memory-mapped file, so that training never waits for a video decoder.

A cache is a folder `<content key>/` with `frames.u8` and `manifest.json`. It is built under another name and renamed
when complete, so a reader sees a whole cache or none; a lock makes a second process wait instead of decoding again.

Legend: `N` frames of the dataset, `V` present cameras in slot order, `H`/`W` pixels of the model's view.
"""

import errno
import hashlib
import json
import logging
import os
import shutil
import uuid
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from huggingface_hub.utils import WeakFileLock
from torch import Tensor

from vla_mot.data.content import file_digest
from vla_mot.data.source import Source
from vla_mot.errors import DatasetError
from vla_mot.robots.images import resize_with_pad

log = logging.getLogger(__name__)

_FRAMES, _MANIFEST = "frames.u8", "manifest.json"
_LAYOUT = 1
"""Raise when the bytes of a cache change their meaning."""

Progress = Callable[[int, int], None]
"""Called with (frames done, frames in all) after every episode."""


def default_folder() -> Path:
    """Return the user's cache folder for frames: `$XDG_CACHE_HOME/vla_mot/frames` or `~/.cache/vla_mot/frames`."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "vla_mot" / "frames"


@dataclass(frozen=True)
class _Manifest:
    """What a cache holds: `shape` is `(N, V, 3, H, W)`; `digest` is that of the frames file."""

    layout: int
    dataset: str
    cameras: tuple[str, ...]
    shape: tuple[int, ...]
    digest: str = ""

    @property
    def key(self) -> str:
        spec = json.dumps([self.layout, self.dataset, self.cameras, self.shape])
        return hashlib.blake2b(spec.encode(), digest_size=12).hexdigest()

    @property
    def bytes(self) -> int:
        return int(np.prod(self.shape, dtype=np.int64))


class FrameCache:
    """All frames of one source, resized with padding: `(N, V, 3, H, W)` uint8, memory-mapped and read-only.

    Pickles as its path, so that a worker process maps the same file.
    """

    def __init__(self, folder: Path, shape: Sequence[int]) -> None:
        self.folder = folder
        self.shape = tuple(shape)
        self._frames = np.asarray(np.memmap(folder / _FRAMES, dtype=np.uint8, mode="r", shape=self.shape))

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.folder, self.shape)

    def __len__(self) -> int:
        return self.shape[0]

    def gather(self, frames: Tensor) -> Tensor:
        """Copy frames: `(…)` int64 → `(…, V, 3, H, W)` uint8."""
        return torch.from_numpy(self._frames.take(frames.numpy(), axis=0))

    @classmethod
    def open(
        cls,
        source: Source,
        image_size: tuple[int, int],
        folder: Path | None = None,
        progress: Progress | None = None,
    ) -> Self:
        """Map the cache of a source, building it first where it is absent or damaged.

        image_size: (height, width) of the model's view. folder: where caches lie, `default_folder()` by default.
        Raises DatasetError when a video cannot be decoded, or the disk is full.
        """
        folder = folder or default_folder()
        shape = (source.num_frames, len(source.cameras), 3, *image_size)
        manifest = _Manifest(_LAYOUT, source.content_hash, source.cameras, shape)
        place = folder / manifest.key
        if not _is_whole(place, manifest):
            folder.mkdir(parents=True, exist_ok=True)
            with WeakFileLock(folder / f"{manifest.key}.lock"):
                if not _is_whole(place, manifest):
                    _build(source, manifest, place, progress)
        return cls(place, shape)


def _is_whole(place: Path, wanted: _Manifest) -> bool:
    """True if a cache of this content is there, of the right size and undamaged where its digest looks."""
    if not place.is_dir():
        return False
    try:
        found = json.loads((place / _MANIFEST).read_text())
        whole = (
            (place / _FRAMES).stat().st_size == wanted.bytes
            and found == json.loads(json.dumps(asdict(wanted) | {"digest": found["digest"]}))
            and found["digest"] == file_digest(place / _FRAMES)
        )
    except (OSError, ValueError, KeyError, TypeError):
        whole = False
    if not whole:
        log.warning("the frame cache %s is damaged and is built again.", place)
    return whole


def _build(source: Source, manifest: _Manifest, place: Path, progress: Progress | None) -> None:
    for dead in place.parent.glob(f".{place.name}.building-*"):  # of a killed process: we hold the lock
        shutil.rmtree(dead, ignore_errors=True)
    work = place.with_name(f".{place.name}.building-{uuid.uuid4().hex[:8]}")
    _require_space(place.parent, manifest)
    try:
        work.mkdir()
        _write_frames(source, manifest, work / _FRAMES, progress)
        digest = file_digest(work / _FRAMES)
        (work / _MANIFEST).write_text(json.dumps(asdict(manifest) | {"digest": digest}, indent=1))
        if place.exists():
            place.rename(work / "damaged")
        work.rename(place)
        shutil.rmtree(place / "damaged", ignore_errors=True)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise DatasetError(_no_space(place.parent, manifest)) from error
        raise
    finally:
        shutil.rmtree(work, ignore_errors=True)


def _write_frames(source: Source, manifest: _Manifest, path: Path, progress: Progress | None) -> None:
    """Decode episode after episode. Written, not mapped: a full disk must be an error, not a bus fault."""
    height, width = manifest.shape[-2:]
    done = 0
    with path.open("wb") as file:
        for episode in range(source.num_episodes):
            views = [
                torch.cat(
                    [resize_with_pad(run, height, width) for run in source.decode_runs(episode, camera)]
                )
                for camera in source.cameras
            ]
            frames = torch.stack(views, dim=1)  # (T, V, 3, H, W)
            file.write(frames.numpy().data)
            done += frames.shape[0]
            if progress is not None:
                progress(done, source.num_frames)
        file.flush()
        os.fsync(file.fileno())
    assert path.stat().st_size == manifest.bytes, f"wrote {path.stat().st_size} of {manifest.bytes} bytes"


def _require_space(folder: Path, manifest: _Manifest) -> None:
    if shutil.disk_usage(folder).free < manifest.bytes:
        raise DatasetError(_no_space(folder, manifest))


def _no_space(folder: Path, manifest: _Manifest) -> str:
    free = shutil.disk_usage(folder).free / 2**20
    return (
        f"the frame cache needs {manifest.bytes / 2**20:.0f} MiB in {folder}, where {free:.0f} MiB are free. "
        "Free some space, or choose another cache folder."
    )
