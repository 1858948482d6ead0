"""The foresight tokenizer's latents of every frame in one memory-mapped file: its targets never change.

Legend: `N` frames of the dataset, `V` present cameras in slot order, `H`/`W` pixels of a view, `C` latent channels,
`h`/`w` latent rows and columns.
"""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Literal, Self

import numpy as np
import torch
from torch import Tensor

from vla_mot.data.frames import Frames
from vla_mot.data.mapped_array import Content, MappedArray, Progress, Wanted, ensure, user_folder
from vla_mot.data.mapped_room import GIB
from vla_mot.data.pictures import EpisodeError
from vla_mot.data.source import Source
from vla_mot.errors import ConfigError, DatasetError

_LAYOUT = 1
"""Raise when the bytes of a cache change their meaning."""
_ROWS = 32
"""Frames that are encoded at once, all their views together."""

Encode = Callable[[Tensor], Tensor]
"""Pictures `(n, 3, H, W)` uint8 → latents `(n, C, h, w)`, any float dtype and device; each from its picture alone."""


class LatentCache(MappedArray):
    """Latents of all frames of one source: `(N, V, C, h, w)` float32 or float16, memory-mapped and read-only."""

    file = "latents.bin"

    @classmethod
    def open(
        cls,
        frames: Frames,
        source: Source,
        encode: Encode | None,
        tokenizer_key: str,
        dtype: Literal["float32", "float16"] = "float32",
        folder: Path | None = None,
        progress: Progress | None = None,
        limit_gib: float | None = None,
    ) -> Self:
        """Map the latents of a source, encoding all of its frames first where they are absent or damaged.

        frames: of the source, at the size that the tokenizer encodes. encode: None where they must be there already, as
        in a process without a model. tokenizer_key: names the tokenizer's configuration and weights, for instance by
        a hash; another key is another cache. folder, limit_gib: as for `FrameCache`; by default the user's own
        folder for latents.
        Raises DatasetError when pictures cannot be read, the latents are absent and `encode` is None, or (NoRoomError)
        they do not fit; ConfigError when latents do not fit the dtype or are not finite.
        """
        wanted = Wanted(
            kind="latent cache",
            file=cls.file,
            dtype=dtype,
            facts={
                "kind": "latent cache",
                "layout": _LAYOUT,
                "dataset": source.content_hash,
                "cameras": source.cameras,
                "view": frames.shape[-2:],
                "tokenizer": tokenizer_key,
                "dtype": dtype,
            },
            folder=folder or user_folder("latents"),
            name=source.root.name,
            limit=None if limit_gib is None else round(limit_gib * GIB),
            tolerant=source.tolerant,
        )
        return cls(ensure(wanted, lambda: _content(frames, source, encode, dtype, progress)))


def _content(
    frames: Frames, source: Source, encode: Encode | None, dtype: str, progress: Progress | None
) -> Content:
    if encode is None:
        raise DatasetError(
            f"the latents of dataset {source.root} are not cached yet. Encode them first, where the tokenizer is."
        )
    latents = _encoded(encode, _any_picture(frames, source))
    shape = (*frames.shape[:2], *latents.shape[2:])

    def read(episode: int) -> Iterator[np.ndarray]:
        for rows in torch.arange(*source.bounds[episode].tolist()).split(_ROWS):
            yield _stored(_encoded(encode, frames.gather(rows)), dtype)

    return Content(shape, source.bounds, read, progress)


def _any_picture(frames: Frames, source: Source) -> Tensor:
    """`(1, V, 3, H, W)` of the first episode that can be read; its latents say how large all are."""
    for start in source.bounds[:, 0].tolist():
        try:
            return frames.gather(torch.tensor([start]))
        except EpisodeError as error:
            if not source.tolerant:
                raise
            reason = error
    raise reason


def _encoded(encode: Encode, pictures: Tensor) -> Tensor:
    """`(r, V, 3, H, W)` → `(r, V, C, h, w)`."""
    return encode(pictures.flatten(0, 1)).unflatten(0, pictures.shape[:2])


def _stored(latents: Tensor, dtype: str) -> np.ndarray:
    stored = latents.detach().to("cpu", getattr(torch, dtype))
    if not stored.isfinite().all():
        raise ConfigError(
            f"latents up to {latents.abs().max():g} cannot be stored as {dtype}; choose float32, and check the "
            "tokenizer's weights."
        )
    return stored.numpy()
