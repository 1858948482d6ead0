"""What was foreseen of frame t + m, in pixels: PSNR and SSIM per camera, beside copying the last frame.

    foresight       the pictures decoded from the latents that the policy foresees
    copy_last       frame t itself
    reconstructed   the true frame through the foresight tokenizer and back: as good as any foresight can look

PSNR is that of the mean squared error over all pictures, SSIM the mean over them. Pictures have the size that the
tokenizer decodes to; borders that were padded count like everything else.

Legend: `B` moments, `V` cameras, `E` episodes, `M` methods, `H`/`W` pixels.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vla_mot.evaluate.foresight import true_pictures
from vla_mot.evaluate.intervals import Interval, episode_weights, over_episodes
from vla_mot.evaluate.open_loop.recorded import Recorded
from vla_mot.evaluate.picture_scores import mean_squared_error, peak_ratio, structural_similarity
from vla_mot.model.model import VlaMotModel
from vla_mot.robots.embodiment import CAMERA_PREFIX, Embodiment

METHODS = {
    "foresight": "foreseen",
    "copy_last": "copy of the last frame",
    "reconstructed": "the truth through the tokenizer",
}
"""Method → label."""


@dataclass(frozen=True)
class PictureScore:
    """Of one method on one camera's pictures. psnr in dB, ssim; with 95 % intervals over episodes."""

    psnr: Interval
    ssim: Interval

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {"psnr": self.psnr.to_dict(), "ssim": self.ssim.to_dict()}


@dataclass(frozen=True)
class PictureScores:
    """Summed scores of one embodiment.

    cameras: V short names. sums: `(E, V, M, 2)`, squared error and SSIM. counts: `(E, V)` pictures.
    """

    cameras: tuple[str, ...]
    sums: np.ndarray
    counts: np.ndarray

    def score(self, camera: str, method: str) -> PictureScore:
        """Scores of a camera; at least one of its pictures was compared."""
        view, column = self.cameras.index(camera), list(METHODS).index(method)
        sums, counts = self.sums[:, view, column], self.counts[:, view]
        weights = episode_weights(len(counts))
        with np.errstate(divide="ignore", invalid="ignore"):
            drawn = (weights @ sums) / (weights @ counts)[:, None]
            ratios = -10 * np.log10(drawn[:, 0])
        mse, ssim = (sums.sum(0) / counts.sum()).tolist()
        return PictureScore(
            over_episodes(peak_ratio(mse), ratios, len(counts)), over_episodes(ssim, drawn[:, 1], len(counts))
        )

    def pictures(self, camera: str) -> int:
        """How many pictures of a camera were compared."""
        return int(self.counts[:, self.cameras.index(camera)].sum())


def joined_pictures(parts: Sequence[PictureScores]) -> PictureScores:
    """Scores of several datasets of one embodiment, their episodes one after another.

    A camera that a dataset does not have counts nothing there: two that nobody describes may go by one name.
    """
    cameras = tuple(dict.fromkeys(camera for part in parts for camera in part.cameras))
    episodes = sum(len(part.counts) for part in parts)
    sums, counts = np.zeros((episodes, len(cameras), len(METHODS), 2)), np.zeros((episodes, len(cameras)))
    first = 0
    for part in parts:
        rows = slice(first, first := first + len(part.counts))
        places = [cameras.index(camera) for camera in part.cameras]
        sums[rows, places], counts[rows, places] = part.sums, part.counts
    return PictureScores(cameras, sums, counts)


def short_name(camera: str) -> str:
    """`observation.images.head` → `head`."""
    return camera.removeprefix(CAMERA_PREFIX)


class PictureSums:
    """Adds up the scores of one dataset, episode by episode."""

    def __init__(self, embodiment: Embodiment) -> None:
        self.cameras = tuple(short_name(key) for _, key in embodiment.present_cameras)
        self._found: dict[int, tuple[np.ndarray, np.ndarray]] = {}

    def add(self, shown: Mapping[str, Tensor], valid: Tensor, episodes: Tensor) -> None:
        """shown: `truth` and every method → `(B, V, 3, H, W)` in [0, 1]. valid, episodes: `(B,)`.

        Moments without a future are left out.
        """
        rows = valid.nonzero()[:, 0]
        if not len(rows):
            return
        truth = shown["truth"][rows]
        parts = [
            torch.stack(
                [score(shown[name][rows], truth) for score in (mean_squared_error, structural_similarity)], -1
            )
            for name in METHODS
        ]
        table = torch.stack(parts, dim=2).cpu().numpy()  # (B, V, M, 2)
        one = np.ones(len(self.cameras))
        for row, episode in enumerate(episodes[rows].tolist()):
            sums, counts = self._found.get(episode, (0.0, 0.0))
            self._found[episode] = (sums + table[row], counts + one)

    def scores(self) -> PictureScores | None:
        """What was added; None when no moment had a future."""
        if not self._found:
            return None
        sums, counts = zip(*self._found.values(), strict=True)
        return PictureScores(self.cameras, np.stack(sums), np.stack(counts))


def shown_pictures(
    model: VlaMotModel, embodiment: Embodiment, seen: Recorded, foresight: Tensor
) -> dict[str, Tensor]:
    """`past`, `truth` and every method → `(B, V, 3, H, W)` in [0, 1] on the CPU, V present cameras in slot order.

    foresight: latents `(B, slots, C, h, w)`.
    """
    device, keys = foresight.device, [key for _, key in embodiment.present_cameras]
    slots = [slot for slot, _ in embodiment.present_cameras]
    frames = torch.stack([seen.images[key] for key in keys], dim=1).to(device)
    future = torch.stack([seen.future[key] for key in keys], dim=1).to(device)
    found = {
        "past": true_pictures(model, frames[:, :, 0]),
        "truth": true_pictures(model, future),
        "foresight": model.decode_latents(foresight[:, slots].float()),
        "copy_last": true_pictures(model, frames[:, :, 1]),
        "reconstructed": model.decode_latents(model.encode_frames(future[:, :, None])[:, :, 0]),
    }
    return {name: pictures.float().cpu() for name, pictures in found.items()}
