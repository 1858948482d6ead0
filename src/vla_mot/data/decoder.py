"""Decodes pictures from one video file, through lerobot's decoder: torchcodec where it works, else PyAV.

A decoder conceals damage inside a picture, and none can tell; what can be told is: a file that was cut short, one with
too few pictures, pictures at other times than asked for. All of these are errors here, never another picture.
"""

import importlib
import logging
import os
import threading
from collections.abc import Sequence
from functools import cache, lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Literal, get_args

from torch import Tensor

from vla_mot.data.quiet import quiet_libav
from vla_mot.errors import ConfigError, unknown_name

if TYPE_CHECKING:
    from lerobot.datasets.video_utils import VideoDecoderCache

log = logging.getLogger(__name__)

Decoder = Literal["auto", "torchcodec", "pyav"]
"""Which library decodes videos; `auto`: the first of the others that works here."""

_OPEN_VIDEOS = 16
"""Videos that torchcodec keeps open in each decoding thread: a descriptor and a few MB each."""
_REMEMBERED = 4096
"""Videos of which a process remembers that they are whole."""
Stamp = tuple[int, int]
"""Size in bytes and time of change: another content of a file has another one."""
_INSTALL = (
    "torchcodec needs the shared libraries of FFmpeg 4 to 8: `apt install ffmpeg` or `conda install ffmpeg`"
)


def choose_decoder(wanted: str = "auto") -> str:
    """Name the decoder to use: `torchcodec` or `pyav`. Says once, at level info, what was chosen and why.

    Raises ConfigError when `wanted` is unknown, or cannot be loaded here: the message says what to install.
    """
    if wanted not in get_args(Decoder):
        raise ConfigError(unknown_name("decoder", wanted, get_args(Decoder)))
    if wanted == "auto":
        return _probe()
    problem = _problem(wanted)
    if problem:
        raise ConfigError(f"decoder {wanted!r} cannot be loaded: {problem}. Or choose decoder=auto.")
    return wanted


@cache
def _probe() -> str:
    problem = _problem("torchcodec")
    if not problem:
        log.info("videos are decoded with torchcodec.")
        return "torchcodec"
    log.info("videos are decoded with PyAV, which is slower; torchcodec cannot be loaded: %s.", problem)
    return "pyav"


@cache
def _problem(name: str) -> str:
    """Why a decoder cannot be loaded here; empty when it can."""
    try:
        importlib.import_module({"torchcodec": "torchcodec.decoders", "pyav": "av"}[name])
    except ModuleNotFoundError as error:
        return f"{error.name} is not installed (pip install {'av' if name == 'pyav' else 'torchcodec'})"
    except (ImportError, OSError, RuntimeError) as error:
        reason = str(error).split("\n")[0].partition(". ")[0].rstrip(".")
        return f"{reason}; {_INSTALL}" if name == "torchcodec" else reason
    return ""


def decode_times(
    path: Path, times: Sequence[float], tolerance: float, decoder: str, least: int = 0
) -> Tensor:
    """Decode the pictures at the given times: `(n, 3, h, w)` uint8, contiguous, in the order asked for.

    times: seconds in the video, ascending and near each other. tolerance: seconds by which a picture may be off.
    decoder: as `choose_decoder` returns it. least: pictures that the whole file must have.
    Raises ValueError (or what the decoder raises) when the file is missing, cut short or damaged, has too few pictures,
    or none at one of the times.
    """
    status = path.stat()
    stamp = (status.st_size, status.st_mtime_ns)
    if problem := _cut_short(path, stamp):
        raise ValueError(problem)
    if 0 < (count := _count(path, stamp)) < least:
        raise ValueError(f"the file has {count} pictures, its episodes need {least}: it is another video")
    with quiet_libav():
        pictures = _decode(path, stamp, list(times), tolerance, decoder)
    if pictures.shape[:2] != (len(times), 3):
        raise ValueError(f"expected {len(times)} pictures of 3 colours, got shape {tuple(pictures.shape)}")
    return pictures.contiguous()


def _decode(path: Path, stamp: Stamp, times: list[float], tolerance: float, decoder: str) -> Tensor:
    from lerobot.datasets import video_utils

    if decoder == "torchcodec":
        return video_utils.decode_video_frames_torchcodec(
            path, times, tolerance, decoder_cache=_open_videos.get(path, stamp), return_uint8=True
        )
    return video_utils.decode_video_frames(path, times, tolerance, backend=decoder, return_uint8=True)


class _OpenVideos(threading.local):
    """The videos that a thread keeps open: a decoder serves one thread, and no child of the process that made it."""

    process = 0
    videos: "VideoDecoderCache"
    inherited: "VideoDecoderCache | None" = None

    def get(self, path: Path, stamp: Stamp) -> "VideoDecoderCache":
        """What to decode `path` from; never an open file whose content was replaced since."""
        if self.process != os.getpid():
            self.inherited = getattr(self, "videos", None)  # ending a decoder that the parent began may hang
            self.process = os.getpid()
            self._renew()
        replaced = path in self.videos and self.stamps.get(path) != stamp
        if replaced or len(self.stamps) >= _REMEMBERED:
            self.videos.clear()
            self._renew()
        self.stamps[path] = stamp
        return self.videos

    def _renew(self) -> None:
        from lerobot.datasets.video_utils import VideoDecoderCache

        self.videos = VideoDecoderCache(max_size=_OPEN_VIDEOS)
        self.stamps: dict[Path, Stamp] = {}


_open_videos = _OpenVideos()


@lru_cache(maxsize=_REMEMBERED)
def _count(path: Path, stamp: Stamp) -> int:
    """Pictures in a file, as its index says; 0 where it says nothing."""
    import av

    with quiet_libav(), av.open(str(path)) as container:
        return container.streams.video[0].frames


@lru_cache(maxsize=_REMEMBERED)
def _cut_short(path: Path, stamp: Stamp) -> str:
    """Why the last picture of an MP4 file would be half grey: it ends before its own boxes do; empty when it does not.

    Source: ISO/IEC 14496-12 §4.2.
    """
    size = stamp[0]
    if size == 0:
        return "the file is empty"
    at = 0
    with path.open("rb") as file:
        while at < size:
            file.seek(at)
            head = file.read(16)
            if at == 0 and head[4:8] != b"ftyp":
                return ""  # another container
            length = int.from_bytes(head[:4])
            if length == 1:
                length = int.from_bytes(head[8:16])
            if length == 0 and len(head) >= 8:  # to the end of the file
                return ""
            if length < 8 or at + length > size:
                return f"the file is cut short: it has {size} bytes, its boxes at least {at + max(length, 8)}"
            at += length
    return ""
