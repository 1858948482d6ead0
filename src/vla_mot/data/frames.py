"""Pictures of every frame of a dataset: from a cache, or decoded on demand.

Legend: `N` frames of the dataset, `V` present cameras in slot order, `H`/`W` pixels of the model's view.
"""

import logging
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, Protocol

import torch
from torch import Tensor

from vla_mot.data.decoder import Decoder
from vla_mot.data.frame_cache import FrameCache, default_folder
from vla_mot.data.mapped_array import Progress
from vla_mot.data.mapped_room import NoRoomError
from vla_mot.data.source import Source
from vla_mot.errors import ConfigError
from vla_mot.robots.images import resize_with_pad

log = logging.getLogger(__name__)


class Frames(Protocol):
    """All frames of a dataset as the model sees them; shape: `(N, V, 3, H, W)`."""

    shape: tuple[int, ...]

    def gather(self, frames: Tensor) -> Tensor:
        """Copy frames: `(…)` int64 → `(…, V, 3, H, W)` uint8.

        Raises EpisodeError (a DatasetError) naming the episode when one cannot be read, and IndexError for a frame
        that there is not.
        """
        ...

    def close(self) -> None:
        """Give back what is held; nothing can be gathered any more."""
        ...


@dataclass(frozen=True)
class FramesConfig:
    """Where pictures come from.

    store: `cache`, every frame decoded once, or `video`, decoded whenever it is asked for. folder: of the caches; None
    for the user's. limit_gib: what all caches in it may take together, None for as much as the disk has.
    decoder: of videos; `auto` takes torchcodec where it can be loaded.
    """

    store: Literal["cache", "video"] = "cache"
    folder: Path | None = None
    limit_gib: float | None = None
    decoder: Decoder = "auto"

    def __post_init__(self) -> None:
        if self.limit_gib is not None and not self.limit_gib > 0:
            raise ConfigError(
                f"the limit of the frame cache must be above 0 GiB, got {self.limit_gib}; to keep none, decode "
                "from video."
            )


class VideoFrames:
    """The frames of one source, decoded and resized whenever they are asked for. Holds no file open, and pickles."""

    def __init__(self, source: Source, image_size: tuple[int, int]) -> None:
        self.source, self.image_size = source, image_size
        self.shape: tuple[int, ...] = (source.num_frames, len(source.cameras), 3, *image_size)

    def gather(self, frames: Tensor) -> Tensor:
        """As in `Frames`; each frame is decoded once, those near each other in one go."""
        wanted, back = frames.unique(return_inverse=True)
        found = torch.empty(len(wanted), *self.shape[1:], dtype=torch.uint8)
        for view, camera in enumerate(self.source.cameras):
            for run, pictures in self.source.pictures.decode(wanted, camera):
                found[run, view] = resize_with_pad(pictures, *self.image_size)
        return found[back]

    def close(self) -> None:
        """Nothing is held."""


_refused: set[tuple[Path, Path, tuple[int, int]]] = set()
"""Datasets whose cache did not fit: said once, and not tried again by this process."""


def open_frames(
    source: Source, image_size: tuple[int, int], config: FramesConfig, progress: Progress | None = None
) -> Frames:
    """Open the frames of a source, building a cache where it is wanted, absent, and fits.

    image_size: (height, width) of the model's view. A cache that does not fit the limit or the disk is named in a
    warning, and the frames are decoded on demand instead.
    Raises DatasetError when a video cannot be decoded, and ConfigError when the decoder cannot be loaded.
    """
    if config.decoder != "auto":
        source = replace(source, pictures=source.pictures.decoded_by(config.decoder))
    folder = config.folder or default_folder()
    asked = (source.root.absolute(), folder.absolute(), image_size)
    if config.store == "video" or asked in _refused:
        return VideoFrames(source, image_size)
    try:
        return FrameCache.open(source, image_size, folder, progress, config.limit_gib)
    except NoRoomError as error:
        _refused.add(asked)
        log.warning("dataset %r is decoded from video, which is slower: %s", source.root.name, error)
        return VideoFrames(source, image_size)
