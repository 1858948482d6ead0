"""Single episodes as they are drawn: what was recorded, every chunk over it, and what the cameras saw and foresaw.

Legend: `T` frames of the episode, `l` steps of a chunk inside it, `D` action dims, `H`/`W` pixels.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from vla_mot.evaluate.open_loop.recorded import Recorded
from vla_mot.robots.images import to_bytes


@dataclass(frozen=True)
class DrawnChunk:
    """A chunk from `frame` on, counted from the episode's start: predicted and held still, `(l, D)` each."""

    frame: int
    predicted: np.ndarray
    held: np.ndarray


@dataclass(frozen=True)
class Moment:
    """What the cameras saw at one moment.

    views: camera → `past`, `copy_last` (the present), `truth` and `foresight`, `(H, W, 3)` uint8 each; `truth` only
    where it lies inside the episode, `foresight` only where the policy foresees. moved: mean squared error of copying.
    """

    frame: int
    views: Mapping[str, Mapping[str, np.ndarray]]
    moved: float = 0.0


@dataclass(frozen=True)
class Trace:
    """One episode. task: its first instruction. actions: `(T, D)` as recorded."""

    episode: int
    actions: np.ndarray
    task: str = ""
    chunks: tuple[DrawnChunk, ...] = ()
    moments: tuple[Moment, ...] = ()


@dataclass
class TraceBuilder:
    """Gathers one episode from batches that hold moments of it."""

    episode: int
    actions: np.ndarray
    task: str = ""
    chunks: list[DrawnChunk] = field(default_factory=list)
    moments: list[Moment] = field(default_factory=list)

    def add(self, row: int, seen: Recorded, chunks: Mapping[str, Tensor]) -> None:
        """Take in a moment. chunks: `policy` and `hold` → `(B, L, D)`; empty without actions."""
        self.task = self.task or seen.tasks[row]
        if chunks:
            real, frame = seen.step_mask[row], int(seen.frame[row])
            self.chunks.append(
                DrawnChunk(frame, *(chunks[name][row][real].numpy() for name in ("policy", "hold")))
            )

    def look(self, row: int, seen: Recorded, shown: Mapping[str, Tensor], cameras: tuple[str, ...]) -> None:
        """Take in the pictures of a moment. shown: see `pictures.shown_pictures`."""
        real = bool(seen.future_valid[row])
        names = [
            "past",
            "copy_last",
            *(["truth"] if real else []),
            *(["foresight"] if "foresight" in shown else []),
        ]
        views = {
            camera: {name: _pixels(shown[name][row, view]) for name in names}
            for view, camera in enumerate(cameras)
        }
        moved = float((shown["truth"][row] - shown["copy_last"][row]).square().mean()) if real else 0.0
        self.moments.append(Moment(int(seen.frame[row]), views, moved))

    def trace(self) -> Trace:
        """What was gathered, in the order of time."""
        chunks = tuple(sorted(self.chunks, key=lambda chunk: chunk.frame))
        moments = tuple(sorted(self.moments, key=lambda moment: moment.frame))
        return Trace(self.episode, self.actions, self.task, chunks, moments)


def _pixels(picture: Tensor) -> np.ndarray:
    """`(3, H, W)` in [0, 1] → `(H, W, 3)` uint8."""
    pixels: np.ndarray = to_bytes(torch.movedim(picture, 0, -1)).contiguous().numpy()
    return pixels
