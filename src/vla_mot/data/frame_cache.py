"""Decoded frames in one memory-mapped file, so that training never waits for a video decoder.

Legend: `N` frames of the dataset, `V` present cameras in slot order, `H`/`W` pixels of the model's view.
"""

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Self

import numpy as np
import torch

from vla_mot.data.mapped_array import Content, MappedArray, Progress, Wanted, ensure, user_folder
from vla_mot.data.mapped_room import GIB
from vla_mot.data.source import Source
from vla_mot.robots.images import resize_with_pad

_LAYOUT = 1
"""Raise when the bytes of a cache change their meaning."""


def default_folder() -> Path:
    """Return the user's cache folder for frames: `$XDG_CACHE_HOME/vla_mot/frames` or `~/.cache/vla_mot/frames`."""
    return user_folder("frames")


class FrameCache(MappedArray):
    """All frames of one source, resized with padding: `(N, V, 3, H, W)` uint8, memory-mapped and read-only."""

    file = "frames.u8"

    @classmethod
    def open(
        cls,
        source: Source,
        image_size: tuple[int, int],
        folder: Path | None = None,
        progress: Progress | None = None,
        limit_gib: float | None = None,
    ) -> Self:
        """Map the cache of a source, building it first where it is absent or damaged.

        image_size: (height, width) of the model's view. folder: where caches lie, `default_folder()` by default.
        limit_gib: what all caches of the folder may take; those used longest ago give way, see `mapped_room`.
        A source that was opened to tolerate missing videos keeps its other episodes; reading one of those that could
        not be decoded raises EpisodeError. One that was opened in part is opened as a whole to build its cache.
        Raises DatasetError when a video cannot be decoded; NoRoomError, one too, when the disk or the limit is full.
        """
        shape = (source.num_frames, len(source.cameras), 3, *image_size)
        wanted = Wanted(
            kind="frame cache",
            file=cls.file,
            dtype="uint8",
            facts={
                "layout": _LAYOUT,
                "dataset": source.content_hash,
                "cameras": source.cameras,
                "shape": shape,
            },
            folder=folder or default_folder(),
            name=source.root.name,
            limit=None if limit_gib is None else round(limit_gib * GIB),
            tolerant=source.tolerant,
        )

        def content() -> Content:
            return Content(shape, source.bounds, partial(_read, source.whole(), image_size), progress)

        return cls(ensure(wanted, content))


def _read(source: Source, size: tuple[int, int], episode: int) -> Iterator[np.ndarray]:
    """Decode an episode, a run of frames at a time: `(r, V, 3, H, W)`."""
    runs = (source.decode_runs(episode, camera) for camera in source.cameras)
    for views in zip(*runs, strict=True):
        yield torch.stack([resize_with_pad(view, *size) for view in views], dim=1).numpy()
