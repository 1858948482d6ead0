"""Scores a policy's foresight on a LeRobot dataset, on the episodes that its training held out."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from vla_mot.batch import Batch
from vla_mot.commands.console import console, progress
from vla_mot.commands.mixing import spread_rows
from vla_mot.data.frames import FramesConfig, open_frames
from vla_mot.data.source import Source
from vla_mot.data.split import split_episodes
from vla_mot.data.windows import Collate, WindowConfig, WindowDataset
from vla_mot.evaluate.foresight import NothingToForeseeError, mean_future_latents, score_foresight
from vla_mot.evaluate.foresight_report import ForesightReport
from vla_mot.infer.policy import Policy
from vla_mot.robots.embodiment import CAMERA_PREFIX

_BATCH = 32


@dataclass(frozen=True)
class ForesightData:
    """A dataset, how its episodes were split (0: nothing was held out), and how many frames are scored."""

    root: Path
    samples: int
    cache: Path | None = None
    validation_fraction: float = 0.0
    split_seed: int = 0


@dataclass(frozen=True)
class Opened:
    """A policy and the windows that its foresight is scored on; `training` gives the mean of what it has seen.

    trained_on: whether training may have seen what is scored, for none of its episodes is known to be held out.
    """

    policy: Policy
    training: WindowDataset
    scored: WindowDataset
    collate: Collate
    samples: int
    trained_on: bool


def open_data(policy: Policy, data: ForesightData) -> Opened:
    """Do what can fail: open the dataset and decode its frames. Says so where no episode is known to be held out.

    Raises DatasetError when the dataset is missing or does not fit the policy's embodiment, ConfigError when the policy
    foresees nothing.
    """
    policy.model.required_tokenizer()
    source = Source.open(data.root, policy.robot.embodiment)
    model = policy.spec.model
    pictures = open_frames(source, model.view_size, FramesConfig(folder=data.cache))
    seen, held_out = split_episodes(source.num_episodes, data.validation_fraction, data.split_seed)
    window = WindowConfig(model.chunk_size, model.offset(source.embodiment), model.view_size)
    training = WindowDataset(source, pictures, window, seen)
    scored = WindowDataset(source, pictures, window, held_out or seen)
    if not held_out:
        console.print(
            "no episode is known to be held out (the checkpoint's run held out none, or it lies in no run): foresight "
            "is scored on all, also on trained ones"
        )
    return Opened(policy, training, scored, Collate(policy.processor), data.samples, trained_on=not held_out)


def score(opened: Opened) -> ForesightReport | None:
    """Score foresight against its baselines; None, and a line that says so, when there is nothing to foresee."""
    policy, collate, samples = opened.policy, opened.collate, opened.samples
    try:
        mean = mean_future_latents(
            policy.model, (batch for batch, _ in _batches(opened.training, collate, samples))
        )
        return score_foresight(
            policy.model,
            _shown(opened.scored, collate, samples),
            mean,
            view_names(policy),
            offset_frames=opened.scored.config.offset_frames,
            trained_on=opened.trained_on,
        )
    except NothingToForeseeError as error:
        console.print(f"foresight is not scored: {error}")
        return None


def view_names(policy: Policy) -> list[str]:
    """A name for every camera slot up to the last one that is present."""
    cameras = policy.robot.embodiment.cameras
    last = max(slot for slot, _ in policy.robot.embodiment.present_cameras)
    return [
        (key or f"slot {slot}").removeprefix(CAMERA_PREFIX) for slot, key in enumerate(cameras[: last + 1])
    ]


def _shown(dataset: WindowDataset, collate: Collate, samples: int) -> Iterator[tuple[Batch, Tensor]]:
    with progress("foresight") as advance:
        done = 0
        for batch, episodes in _batches(dataset, collate, samples):
            yield batch, episodes
            done += batch.batch_size
            advance(done, min(samples, len(dataset)))


def _batches(dataset: WindowDataset, collate: Collate, samples: int) -> Iterator[tuple[Batch, Tensor]]:
    """(batch, episode of each sample), evenly spread over the dataset."""
    starts = dataset.source.bounds[:, 0].contiguous()
    for rows in spread_rows(dataset, samples).split(_BATCH):
        episodes = torch.searchsorted(starts, dataset.frames[rows], right=True) - 1
        yield collate(dataset.__getitems__(rows)), episodes
