"""Foresight beside its baselines: does the model foresee what moves, or does it copy what it sees?

Squared errors of latents and of decoded pictures are added up per episode for four predictions of frame t + m:

    foresight      the model's own
    no_history     the same model with its history frame replaced by the present one
    copy_last      the latents of frame t
    training_mean  the mean latents of the training data, cell by cell

over two regions of the samples in which something moves: the `whole` picture, and only the `moving` latent cells,
those in which |z(t + m) − z(t)| (root mean square over channels) exceeds a threshold. Copying the last frame can
not do well in moving cells by their very definition; the other baselines are not touched by the choice.

Legend: `B` batch, `V` views, `C` latent channels, `h`/`w` latent rows and columns, `H`/`W` pixels, `E` episodes,
`M` methods, `G` regions, `Y` episode × view accumulators.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from vla_mot.batch import Batch, Observation
from vla_mot.evaluate.foresight_report import (
    METHODS,
    REGIONS,
    ForesightExample,
    ForesightReport,
    ForesightScore,
)
from vla_mot.evaluate.intervals import Interval, episode_weights, over_episodes
from vla_mot.model.model import VlaMotModel
from vla_mot.robots.images import to_bytes, to_unit

MOVING = 0.5
"""Change of a latent cell that counts as moving, in the units of the latents (the DCT tokenizer's deviate by 1)."""


class NothingToForeseeError(ValueError):
    """A dataset on which foresight cannot be scored: no frame has a future, or nothing moves."""


@torch.no_grad()
def mean_future_latents(model: VlaMotModel, batches: Iterable[Batch]) -> Tensor:
    """Mean latents `(V, C, h, w)` of the real future frames of the training data.

    Raises NothingToForeseeError without any.
    """
    total, count = torch.zeros(()), torch.zeros(())
    for batch in batches:
        batch = batch.to(_device(model))
        latents = model.encode_frames(batch.future.unsqueeze(2)).squeeze(2).double()
        seen = batch.future_mask.double()
        total = total + (latents * seen[:, :, None, None, None]).sum(0)
        count = count + seen.sum(0)
    if not bool((count > 0).any()):
        raise NothingToForeseeError(
            "no real future frame in the training batches: every episode ends before one."
        )
    return (total / count.clamp(min=1)[:, None, None, None]).float()


@torch.no_grad()
def score_foresight(
    model: VlaMotModel,
    batches: Iterable[tuple[Batch, Tensor]],
    mean_latents: Tensor,
    view_names: Sequence[str],
    *,
    offset_frames: int | None = None,
    trained_on: bool = False,
    threshold: float = MOVING,
    num_examples: int = 4,
    seed: int = 0,
) -> ForesightReport:
    """Score a model's foresight on batches of (batch, episode number `(B,)` int64).

    mean_latents: see `mean_future_latents`. view_names: V names, one per camera slot of the batches.
    offset_frames: m of the robot, which the report says; None: the model's. trained_on: whether training may have seen
        these episodes, which the report says.
    threshold: movement of a latent cell, in the units of the latents (those of the DCT tokenizer have deviation 1).
    num_examples: episodes of which the sample with most movement is kept as pictures, in order of appearance.
    seed: of the bootstrap. Raises NothingToForeseeError when nothing moves in any sample, ConfigError for a model that
    foresees nothing.
    """
    sums = _Sums(len(view_names))
    album = _Album(view_names, num_examples)
    for batch, episodes in batches:
        batch = batch.to(_device(model))
        latents = _predictions(model, batch, mean_latents)
        moved = moving_cells(latents["truth"], latents["copy_last"], batch.future_mask, threshold)
        sums.add(latents, _picture_errors(model, batch, latents), moved, episodes)
        album.add(model, batch, latents, moved, episodes)
    if not sums.samples:
        raise NothingToForeseeError(
            f"nothing moves by more than {threshold} in any sample: there is nothing to foresee."
        )
    return ForesightReport(
        scores=tuple(sums.scores(view_names, seed)),
        samples=sums.samples,
        episodes=len(sums.by_episode),
        offset_frames=offset_frames or model.config.offset_frames,
        threshold=threshold,
        trained_on=trained_on,
        examples=tuple(album.examples()),
    )


def _device(model: VlaMotModel) -> torch.device:
    return next(model.parameters()).device


def _predictions(model: VlaMotModel, batch: Batch, mean_latents: Tensor) -> dict[str, Tensor]:
    """Method (and `truth`) → latents `(B, V, C, h, w)`. Raises ConfigError for a model that foresees nothing."""
    observation = batch.observation
    present = model.encode_frames(observation.images[:, :, 1:]).squeeze(2)
    return {
        "truth": model.encode_frames(batch.future.unsqueeze(2)).squeeze(2),
        "foresight": _foreseen(model, observation),
        "no_history": _foreseen(model, without_history(observation)),
        "copy_last": present,
        "training_mean": mean_latents.to(present).expand_as(present),
    }


def _foreseen(model: VlaMotModel, observation: Observation) -> Tensor:
    foreseen = model.prefill(observation).foresight
    assert foreseen is not None, "whoever encodes frames has a generation expert"
    return foreseen


def without_history(observation: Observation) -> Observation:
    """The same observation with the present frame in the place of the past one."""
    present = observation.images[:, :, 1:]
    return replace(observation, images=present.expand_as(observation.images))


def moving_cells(truth: Tensor, present: Tensor, future_mask: Tensor, threshold: float = MOVING) -> Tensor:
    """`(B, V, h, w)` bool: cells of real views with a real future that change by more than the threshold.

    truth, present: latents `(B, V, C, h, w)` of frames t + m and t. future_mask: `(B, V)` of the batch.
    """
    change = (truth - present).square().mean(2).sqrt()
    return (change > threshold) & future_mask[:, :, None, None]


def _picture_errors(model: VlaMotModel, batch: Batch, latents: dict[str, Tensor]) -> Tensor:
    """Mean squared error `(M, B, V)` of the decoded pictures in [0, 1] against the true future frames."""
    truth = true_pictures(model, batch.future)
    return torch.stack(
        [(model.decode_latents(latents[name]) - truth).square().mean((2, 3, 4)) for name in METHODS]
    )


def true_pictures(model: VlaMotModel, frames: Tensor) -> Tensor:
    """Frames `(B, V, 3, H, W)` in [0, 1] at the size that the tokenizer decodes to."""
    unit = to_unit(frames)
    size = model.required_tokenizer().image_size
    if unit.shape[-2:] == size:
        return unit
    flat = F.interpolate(unit.flatten(0, 1), size=size, mode="bilinear", align_corners=False)
    return flat.unflatten(0, unit.shape[:2])


class _Sums:
    """Per episode: summed errors and what they count, so that a bootstrap only adds rows."""

    def __init__(self, views: int) -> None:
        self.views = views
        self.samples = 0
        self.by_episode: dict[int, np.ndarray] = {}

    def add(self, latents: dict[str, Tensor], pictures: Tensor, moved: Tensor, episodes: Tensor) -> None:
        """Add a batch: latents by method, picture errors `(M, B, V)`, moving cells `(B, V, h, w)`."""
        errors = torch.stack([(latents[name] - latents["truth"]).square().mean(2) for name in METHODS])
        seen = moved.flatten(2).any(2)  # (B, V)
        whole = seen[:, :, None, None].expand_as(moved)
        parts = []
        for region in (moved, whole):
            parts += [*(errors * region).sum((3, 4)), region.sum((2, 3)).to(errors)]
        parts += [*(pictures * seen), seen.to(errors)]
        table = torch.stack(parts, dim=-1).double().cpu().numpy()  # (B, V, 3·(M + 1))
        self.samples += int(seen.any(1).sum())
        for row, episode in enumerate(episodes.tolist()):
            if bool(seen[row].any()):
                self.by_episode[episode] = self.by_episode.get(episode, 0.0) + table[row]

    def scores(self, view_names: Sequence[str], seed: int) -> list[ForesightScore]:
        """Means and intervals of every view, region and method; views in which nothing moves are left out."""
        table = np.stack(list(self.by_episode.values()))  # (E, V, 3·(M + 1))
        table = table.reshape(*table.shape[:2], 3, len(METHODS) + 1)
        draws = np.tensordot(episode_weights(len(table), seed), table, 1)  # (R, V, 3, M + 1)
        total = table.sum(0)
        found = []
        for view, name in enumerate(view_names):
            episodes = int((table[:, view, 0, -1] > 0).sum())
            if not episodes:
                continue
            for region, region_name in enumerate(REGIONS):
                for method, method_name in enumerate(METHODS):
                    scores = _intervals(total[view], draws[:, view], region, method, episodes)
                    found.append(ForesightScore(name, region_name, method_name, *scores))
        return found


def _intervals(
    total: np.ndarray, draws: np.ndarray, region: int, method: int, episodes: int
) -> tuple[Interval, Interval, Interval | None]:
    """mse, ratio and psnr from sums `(3, M + 1)` and their resamples `(R, 3, M + 1)`; the last column counts.

    episodes: in which something moves.
    """
    with np.errstate(divide="ignore", invalid="ignore"):
        mse = [part[..., region, method] / part[..., region, -1] for part in (total, draws)]
        ratio = [part[..., region, method] / part[..., region, 0] for part in (total, draws)]
        psnr = [-10 * np.log10(part[..., 2, method] / part[..., 2, -1]) for part in (total, draws)]
    whole = REGIONS[region] == "whole"
    return (
        over_episodes(mse[0], mse[1], episodes),
        over_episodes(ratio[0], ratio[1], episodes),
        over_episodes(psnr[0], psnr[1], episodes) if whole and math.isfinite(psnr[0]) else None,
    )


class _Album:
    """Of each of the first episodes, the sample with most movement, as pictures of every view."""

    def __init__(self, view_names: Sequence[str], size: int) -> None:
        self.view_names, self.size = view_names, size
        self.best: dict[int, tuple[int, list[ForesightExample]]] = {}

    def add(
        self, model: VlaMotModel, batch: Batch, latents: dict[str, Tensor], moved: Tensor, episodes: Tensor
    ) -> None:
        movement = moved.flatten(1).sum(1).tolist()
        for row, episode in enumerate(episodes.tolist()):
            least = self.best[episode][0] if episode in self.best else 0
            wanted = episode in self.best or len(self.best) < self.size
            if wanted and movement[row] > least:
                seen = batch.future_mask[row].tolist()
                self.best[episode] = (
                    movement[row],
                    self._pictures(model, batch, latents, row, episode, seen),
                )

    def _pictures(
        self,
        model: VlaMotModel,
        batch: Batch,
        latents: dict[str, Tensor],
        row: int,
        episode: int,
        seen: list[bool],
    ) -> list[ForesightExample]:
        one = slice(row, row + 1)
        frames = batch.observation.images
        pictures = {
            "past": true_pictures(model, frames[one, :, 0]),
            "present": true_pictures(model, frames[one, :, 1]),
            "future": true_pictures(model, batch.future[one]),
            "foreseen": model.decode_latents(latents["foresight"][one]),
            "no_history": model.decode_latents(latents["no_history"][one]),
        }
        arrays = {name: to_bytes(value[0].movedim(1, -1)).cpu().numpy() for name, value in pictures.items()}
        return [
            ForesightExample(name, episode, **{key: value[view] for key, value in arrays.items()})
            for view, name in enumerate(self.view_names)
            if seen[view]
        ]

    def examples(self) -> list[ForesightExample]:
        return [example for _, examples in self.best.values() for example in examples]
