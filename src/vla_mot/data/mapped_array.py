"""A large array on disk that many processes map: built once, whole or not there, checked when it is opened.

An array is a folder `<key>/` with one file of numbers and `manifest.json`; the key is a hash of what identifies its
content. It is built under another name and renamed when complete, so a reader sees a whole array or none; a lock makes
a second process wait instead of building it again.

Legend: `N` rows, the frames of a dataset.
"""

import errno
import hashlib
import json
import logging
import mmap
import os
import shutil
import uuid
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from huggingface_hub.utils import WeakFileLock
from torch import Tensor

from vla_mot.data import mapped_room as room
from vla_mot.data.content import file_digest
from vla_mot.data.mapped_room import MANIFEST, NoRoomError
from vla_mot.data.pictures import EpisodeError

log = logging.getLogger(__name__)

Progress = Callable[[int, int], None]
"""Called with (frames done, frames in all) after every episode."""


def user_folder(name: str) -> Path:
    """Return the user's cache folder of that name: `$XDG_CACHE_HOME/vla_mot/<name>` or `~/.cache/vla_mot/<name>`."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "vla_mot" / name


@dataclass(frozen=True)
class Hole:
    """Rows of an episode that could not be read when the array was built."""

    start: int
    end: int
    episode: int
    camera: str
    reason: str

    def error(self) -> EpisodeError:
        """What reading one of them raises."""
        return EpisodeError(self.reason, self.episode, self.camera)


@dataclass(frozen=True)
class Content:
    """What is to be written: rows of `shape[1:]`, episode after episode.

    bounds: `(E, 2)` first row and one past the last of every episode. read: gives the blocks of rows of one episode, in
    order; where it raises EpisodeError, the episode is a hole if holes are tolerated. progress: called after each.
    """

    shape: tuple[int, ...]
    bounds: Tensor
    read: Callable[[int], Iterator[np.ndarray]]
    progress: Progress | None = None


@dataclass(frozen=True)
class Wanted:
    """An array to open. facts: what identifies its content, in a fixed order; all of it stands in the manifest.

    kind: what it is called. file: name of its file. name: of the dataset, for messages.
    limit: bytes that all arrays of the folder may take, see `mapped_room`. tolerant: whether it may have holes.
    """

    kind: str
    file: str
    dtype: str
    facts: Mapping[str, Any]
    folder: Path
    name: str
    limit: int | None = None
    tolerant: bool = False

    @property
    def key(self) -> str:
        """Hash of the facts."""
        spec = json.dumps(list(self.facts.values()))
        return hashlib.blake2b(spec.encode(), digest_size=12).hexdigest()

    @property
    def place(self) -> Path:
        """The array's folder."""
        return self.folder / self.key

    @property
    def title(self) -> str:
        """What messages call it."""
        return f"the {self.kind} of {self.name!r}"


class MappedArray:
    """An array on disk, memory-mapped and read-only. Holds one descriptor until it is closed.

    Pickles as its folder, so that a worker process maps the same file.
    """

    file: ClassVar[str]

    def __init__(self, folder: Path) -> None:
        manifest = json.loads((folder / MANIFEST).read_text())
        self.folder = folder
        self.shape: tuple[int, ...] = tuple(manifest["shape"])
        self._holes = [Hole(**hole) for hole in manifest.get("holes", ())]  # ascending
        self._spans = torch.tensor([[hole.start, hole.end] for hole in self._holes], dtype=torch.int64)
        with (folder / self.file).open("rb") as file:
            self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        rows = np.frombuffer(self._map, manifest.get("dtype", "uint8"))
        self._rows: np.ndarray | None = rows.reshape(self.shape)

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.folder,)

    def __len__(self) -> int:
        return self.shape[0]

    def gather(self, frames: Tensor) -> Tensor:
        """Copy rows: `(…)` int64 → `(…, *row)`.

        Raises EpisodeError where an episode among them could not be read when this was built, and IndexError for
        a row that there is not.
        """
        if self._rows is None:
            raise ValueError(f"{self.folder} was closed.")
        if frames.numel() and int(frames.min()) < 0:
            raise IndexError(f"rows are counted from 0, got {int(frames.min())}")
        if self._holes:
            self._require_real(frames)
        self._announce(frames)
        return torch.from_numpy(self._rows.take(frames.numpy(), axis=0))

    def _require_real(self, frames: Tensor) -> None:
        starts, ends = self._spans.unbind(1)
        before = torch.searchsorted(starts.contiguous(), frames, right=True) - 1  # −1: ahead of all holes
        inside = (before >= 0) & (frames < ends[before])
        if inside.any():
            raise self._holes[int(before[inside][0])].error()

    def _announce(self, frames: Tensor) -> None:
        """Have the disk read whole rows at once: page by page, as they are touched, it is many times slower."""
        row = len(self._map) // len(self)
        for frame in frames.unique().tolist():
            start = frame * row // mmap.PAGESIZE * mmap.PAGESIZE
            if 0 <= frame < len(self):
                self._map.madvise(mmap.MADV_WILLNEED, start, (frame + 1) * row - start)

    def close(self) -> None:
        """Give the descriptor and the mapping back; what was gathered stays."""
        if self._rows is not None:
            self._rows = None
            self._map.close()


def ensure(wanted: Wanted, content: Callable[[], Content]) -> Path:
    """Return the folder of an array, building it first where it is absent or damaged.

    From now on it is in use by this process. content: asked for only when it is built.
    One with holes is built again for who tolerates none: what could not be read may have come back.
    Raises NoRoomError when it does not fit, and what making its content raises.
    """
    place = wanted.place
    if not place.is_dir():
        wanted.folder.mkdir(parents=True, exist_ok=True)
    room.use(wanted.folder, wanted.key)
    if not _is_whole(wanted):
        with WeakFileLock(wanted.folder / f"{wanted.key}.lock"):
            if not _is_whole(wanted):
                _build(wanted, content())
    room.touch(place)
    return place


def _is_whole(wanted: Wanted) -> bool:
    """True if an array of this content is there, of the right size and undamaged where its digest looks."""
    if not wanted.place.is_dir():
        return False
    holes = _holes(wanted)
    if holes is None:
        log.warning("the %s %s is damaged and is built again.", wanted.kind, wanted.place)
    elif holes and not wanted.tolerant:
        log.warning("%s lacks %d unreadable episodes and is built again.", wanted.title, holes)
    return holes is not None and (not holes or wanted.tolerant)


def _holes(wanted: Wanted) -> int | None:
    """How many holes an array of this content has; None where it is damaged, or not there."""
    place = wanted.place
    try:
        found = json.loads((place / MANIFEST).read_text())
        stored, holes = (place / wanted.file).stat(), len(found.get("holes", ()))
        whole = (
            {key: found[key] for key in wanted.facts} == json.loads(json.dumps(dict(wanted.facts)))
            and stored.st_size == _bytes(found["shape"], wanted.dtype)
            and found["digest"] == _digest(place / wanted.file, stored.st_size, stored.st_mtime_ns)
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None
    return holes if whole else None


@lru_cache(maxsize=1024)
def _digest(path: Path, size: int, changed: int) -> str:
    return file_digest(path)


def _bytes(shape: tuple[int, ...], dtype: str) -> int:
    return int(np.prod(shape, dtype=np.int64)) * np.dtype(dtype).itemsize


def _build(wanted: Wanted, content: Content) -> None:
    place, size = wanted.place, _bytes(content.shape, wanted.dtype)
    if not room.used_elsewhere(wanted.folder, wanted.key):
        for dead in place.parent.glob(f".{place.name}.building-*"):  # of a killed process: we hold the lock
            shutil.rmtree(dead, ignore_errors=True)
    work = place.with_name(f".{place.name}.building-{uuid.uuid4().hex[:8]}")
    try:
        with room.folder_lock(wanted.folder):
            if place.exists() and _holes(wanted) is None:  # of use to nobody: its room is for the new one
                room.remove(place)
            room.make_room(wanted.folder, size, wanted.limit, wanted.title)
            work.mkdir()
            with (work / wanted.file).open("wb") as file:
                file.truncate(size)  # promised: others count it from now on
        holes = _write(work / wanted.file, content, wanted)
        manifest = {
            **wanted.facts,
            "kind": wanted.kind,
            "name": wanted.name,
            "dtype": wanted.dtype,
            "shape": content.shape,
            "holes": [vars(hole) for hole in holes],
            "digest": file_digest(work / wanted.file),
        }
        (work / MANIFEST).write_text(json.dumps(manifest, indent=1))
        if place.exists():  # with holes, which others tolerate, or of a host that our lock did not reach
            place.rename(work / "replaced")
        work.rename(place)
        shutil.rmtree(place / "replaced", ignore_errors=True)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise NoRoomError(room.no_space(wanted.folder, size, wanted.title)) from error
        raise
    finally:
        shutil.rmtree(work, ignore_errors=True)


def _write(path: Path, content: Content, wanted: Wanted) -> list[Hole]:
    """Write block after block, not through a map: a full disk must be an error, not a bus fault. Returns the holes."""
    holes: list[Hole] = []
    row = _bytes(content.shape[1:], wanted.dtype)
    with path.open("r+b") as file:
        for episode, (start, end) in enumerate(content.bounds.tolist()):
            try:
                for block in content.read(episode):
                    assert block.dtype == np.dtype(wanted.dtype), (
                        f"{block.dtype} in an array of {wanted.dtype}"
                    )
                    file.write(np.ascontiguousarray(block).data)
            except EpisodeError as error:
                if not wanted.tolerant:
                    raise
                holes.append(Hole(start, end, episode, error.camera, str(error)))
                file.seek(end * row)  # what is skipped stays zero, and nobody can read it
            assert file.tell() == end * row, f"wrote {file.tell()} of {end * row} bytes"
            if content.progress is not None:
                content.progress(end, content.shape[0])
        file.flush()
        os.fsync(file.fileno())
    return holes
