"""The pictures of a dataset's cameras, decoded on demand from its videos, or from its tables where it stores images.

Legend: `N` frames of the dataset, `E` episodes, `n` frames asked for, `h`/`w` recorded pixels.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from vla_mot.data.decoder import choose_decoder, decode_times
from vla_mot.data.layout import Files
from vla_mot.data.tables import read_rows
from vla_mot.errors import DatasetError
from vla_mot.robots.images import to_bytes

_RUN = 128
"""Frames from the first to the last of one decoder call at most: lerobot compares every time with every other."""
_NEAR = 8
"""Frames so near each other are decoded in one go; farther ones are sought."""
_SAME_FILE = 0.95
"""Share of its episodes' frames that a video must have: cameras lose some, but a shorter one is another video."""


class EpisodeError(DatasetError):
    """An episode whose pictures cannot be decoded; the rest of the dataset may be fine.

    episode: its number, camera: the image feature.
    """

    def __init__(self, message: str, episode: int = -1, camera: str = "") -> None:
        super().__init__(message)
        self.episode, self.camera = episode, camera

    def __reduce__(self) -> tuple:
        return type(self), (str(self), self.episode, self.camera), self.__dict__  # its notes are there


@dataclass(frozen=True, eq=False)
class Pictures:
    """Decodes frames. Holds no open file, and pickles.

    bounds: `(E, 2)` int64 frames of every episode. timestamp: `(n,)` float32 seconds in the episode, of frame `first`
    and those after it; other frames of a video are not decoded.
    videos: the files of the cameras stored as video; every other camera is a column of `tables`.
    decoder: as in `choose_decoder`; loaded when the first video is decoded.
    """

    root: Path
    fps: float
    bounds: Tensor
    timestamp: Tensor
    tables: Files
    videos: Mapping[str, Files]
    decoder: str = "auto"
    first: int = 0

    def decoded_by(self, decoder: str) -> "Pictures":
        """The same pictures through another decoder. Raises ConfigError when it cannot be loaded."""
        if decoder != "auto":
            choose_decoder(decoder)
        return replace(self, decoder=decoder)

    def decode(self, frames: Tensor, camera: str) -> Iterator[tuple[slice, Tensor]]:
        """Decode frames of one camera, a bounded number at a time.

        frames: `(n,)` int64, ascending, each once. Yields where in them a run lies, and its pictures `(r, 3, h, w)`
        uint8. Raises EpisodeError naming episode, camera and file when one cannot be decoded, and IndexError for a
        frame that the dataset does not have.
        """
        count = int(self.bounds[-1, 1])
        if len(frames) and not 0 <= int(frames[0]) <= int(frames[-1]) < count:
            raise IndexError(f"frames {frames.tolist()} are not all among the {count} of {self.root}")
        episodes = torch.searchsorted(self.bounds[:, 0].contiguous(), frames, right=True) - 1
        held = range(self.first, self.first + len(self.timestamp))
        if camera in self.videos and len(frames):
            assert int(frames[0]) in held and int(frames[-1]) in held, f"only {held} of {self.root} are held"
        for run in _runs(frames.tolist(), episodes.tolist()):
            yield run, self._run(int(episodes[run.start]), frames[run], camera)

    def _run(self, episode: int, frames: Tensor, camera: str) -> Tensor:
        files = self.videos.get(camera, self.tables)
        try:
            if camera in self.videos:
                return self._video_run(files, episode, frames)
            return self._image_run(files, episode, frames, camera)
        except Exception as error:  # the decoders raise many kinds for damaged bytes
            raise EpisodeError(
                f"camera {camera!r} of episode {episode} in {self.root} cannot be decoded from "
                f"{files.path(episode)}: {error}",
                episode,
                camera,
            ) from error

    def _video_run(self, files: Files, episode: int, frames: Tensor) -> Tensor:
        assert files.start is not None, "videos have start times"
        begin = float(files.start[episode])
        times = [begin + time for time in self.timestamp[frames - self.first].tolist()]
        path = self.root / files.path(episode)
        least = int(files.frames[episode] * _SAME_FILE)
        return decode_times(path, times, 0.25 / self.fps, choose_decoder(self.decoder), least)

    def _image_run(self, files: Files, episode: int, frames: Tensor, camera: str) -> Tensor:
        """Decode as lerobot does: with the `Image` feature of `datasets`, then its own transform."""
        from datasets import Image
        from lerobot.datasets.io_utils import hf_transform_to_torch

        together = (files.place == files.place[episode]).all(axis=1)
        first = int(self.bounds[torch.from_numpy(together), 0].min())
        rows = read_rows(self.root, self.root / files.path(episode), camera, (frames - first).tolist())
        if any(row["bytes"] is None for row in rows):
            raise ValueError("the table names pictures that it does not hold")
        images = [Image().decode_example(row) for row in rows]
        return to_bytes(torch.stack(hf_transform_to_torch({camera: images})[camera]))


def _runs(frames: list[int], episodes: list[int]) -> Iterator[slice]:
    """Cut ascending frames into runs: of one episode, near each other, and not too long."""
    start = 0
    for i in range(1, len(frames) + 1):
        if (
            i == len(frames)
            or episodes[i] != episodes[start]
            or frames[i] - frames[i - 1] > _NEAR
            or frames[i] - frames[start] >= _RUN
        ):
            yield slice(start, i)
            start = i
