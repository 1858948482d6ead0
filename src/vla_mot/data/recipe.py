"""How the samples of a mixture are made: which episodes train, how windows are cut, pictures stored and changed.

A recipe holds nothing that is large and pickles, so that a worker process gets it whole and opens what it is assigned.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from vla_mot.data.assignment import Piece, hull
from vla_mot.data.frames import Frames, FramesConfig, open_frames
from vla_mot.data.latent_cache import Encode, LatentCache
from vla_mot.data.mapped_array import Progress
from vla_mot.data.mixture import Entry
from vla_mot.data.source import Source
from vla_mot.data.split import split_episodes
from vla_mot.data.windows import WindowConfig, WindowDataset, Windows
from vla_mot.errors import ConfigError
from vla_mot.robots.augmentation import AugmentationConfig, augment
from vla_mot.robots.processor import Processor


@dataclass(frozen=True)
class SplitConfig:
    """fraction: of every dataset's episodes that validate, in [0, 1). seed: of the choice."""

    fraction: float = 0.0
    seed: int = 0

    def episodes(self, count: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """(training, validation) of `count` episodes; a dataset of one episode trains only."""
        return split_episodes(count, self.fraction if count > 1 else 0.0, self.seed)


@dataclass(frozen=True)
class LatentsConfig:
    """Cached latents. tokenizer: hash of its configuration and weights. folder, limit_gib: as in `FramesConfig`."""

    tokenizer: str
    dtype: Literal["float32", "float16"] = "float32"
    folder: Path | None = None
    limit_gib: float | None = None

    def open(
        self, frames: Frames, source: Source, encode: Encode | None, progress: Progress | None
    ) -> LatentCache:
        """Map the latents of a dataset, encoding them first where they are absent."""
        return LatentCache.open(
            frames, source, encode, self.tokenizer, self.dtype, self.folder, progress, self.limit_gib
        )


@dataclass(frozen=True)
class Opened:
    """A dataset that was opened: its training windows and those held out, if any."""

    training: WindowDataset
    validation: WindowDataset | None

    @property
    def source(self) -> Source:
        """The dataset."""
        return self.training.source

    def close(self) -> None:
        """Give back what its caches hold; what was gathered stays."""
        self.training.pictures.close()
        if self.training.latents is not None:
            self.training.latents.close()


@dataclass(frozen=True)
class Recipe:
    """Everything that decides what a sample is.

    entries: the mixture's datasets. windows: what a window covers, for each of them.
    processors: by the name of the robot. frames: where pictures come from. seed: keys the augmentation.
    latents: where the foresight tokenizer's latents of all frames lie; None: the model encodes pictures.
    tolerant: datasets that lack some of their files are opened all the same, and what is missing is found when it is
        drawn.
    """

    entries: tuple[Entry, ...]
    windows: tuple[WindowConfig, ...]
    processors: Mapping[str, Processor]
    frames: FramesConfig = field(default_factory=FramesConfig)
    split: SplitConfig = field(default_factory=SplitConfig)
    augmentation: AugmentationConfig = field(default_factory=AugmentationConfig)
    seed: int = 0
    tolerant: bool = False
    latents: LatentsConfig | None = None

    def __post_init__(self) -> None:
        if self.latents is not None and not self.augmentation.is_off:
            raise ConfigError(
                "data.latents caches the latents of the pictures as recorded, which data.augmentation would change; "
                "turn one of them off."
            )

    def open(
        self,
        number: int,
        progress: Progress | None = None,
        encode: Encode | None = None,
        within: Sequence[Piece] | None = None,
    ) -> Opened:
        """Open a dataset of the mixture.

        encode: of the foresight tokenizer, for latents that are not there yet; None where they must be.
        within: only the episodes that these pieces of it fall into are held, and those between them; asking for windows
            of others is an error. None: all are held.
        Raises DatasetError when it cannot be read or does not fit its robot, ConfigError when its pictures do not fit
        the windows.
        """
        entry, window = self.entries[number], self.windows[number]
        assert entry.root is not None, f"{entry.name} is only declared"
        source = Source.open(
            entry.root,
            entry.robot,
            missing="report" if self.tolerant else "refuse",
            keep=None if within is None else partial(self._frames_of, within),
        )
        pictures = open_frames(source, window.image_size, self.frames, progress)
        chosen, held_out = self.split.episodes(source.num_episodes)
        config = self.latents
        latents = None if config is None else config.open(pictures, source, encode, progress)
        cut = partial(WindowDataset, source, pictures, window, number=number, latents=latents)
        return Opened(cut(chosen), cut(held_out) if held_out else None)

    def _frames_of(self, pieces: Sequence[Piece], bounds: Tensor) -> range:
        """The frames of all training episodes that pieces of a dataset fall into. bounds: `(E, 2)` of its episodes."""
        chosen = bounds[list(self.split.episodes(len(bounds))[0])]
        behind = chosen.diff()[:, 0].cumsum(0)
        rows = hull(pieces, int(behind[-1]))
        first, last = torch.searchsorted(
            behind, torch.tensor([rows.start, rows.stop - 1]), right=True
        ).tolist()
        return range(int(chosen[first, 0]), int(chosen[last, 1]))

    def changed(self, windows: Windows, index: torch.Tensor) -> Windows:
        """Augment windows, keyed by their global sample indices `(B,)`: one change per sample, for all its frames."""
        return windows.with_images(augment(windows.images, self.augmentation, self.seed, index))
