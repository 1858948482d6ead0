"""Puts a training run together: dataset, statistics, frames, model, batches, trainer.

The order is the content: what is cheap and can fail comes first, so that a mistake leaves nothing behind.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from vla_mot.commands.console import console, progress
from vla_mot.commands.settings import StartConfig, TrainingConfig
from vla_mot.data.frame_cache import FrameCache
from vla_mot.data.source import Source
from vla_mot.data.split import split_episodes
from vla_mot.data.statistics import compute_statistics
from vla_mot.data.stream import BatchStream
from vla_mot.data.windows import Collate, WindowConfig, WindowDataset
from vla_mot.errors import CheckpointError, ConfigError
from vla_mot.hub.checkpoint import open_checkpoint
from vla_mot.hub.foresight_weights import load_tokenizer
from vla_mot.hub.remote import fetch
from vla_mot.hub.spec import PolicySpec
from vla_mot.hub.stock import load_backbone
from vla_mot.model.model import VlaMotModel
from vla_mot.robots.robot import Robot
from vla_mot.train.loop import Trainer

_FIT_FRAMES = 512  # training frames that the foresight tokenizer's statistics are fitted on


@dataclass(frozen=True)
class Data:
    """A dataset ready for training: its split, statistics, decoded frames, and how windows become batches."""

    source: Source
    spec: PolicySpec
    training: WindowDataset
    validation: WindowDataset | None
    cache: FrameCache


def open_data(config: TrainingConfig) -> Data:
    """Open the dataset, split it by episodes, compute statistics, decode its frames.

    Raises DatasetError or ConfigError when it does not fit the embodiment or the model.
    """
    source = Source.open(config.data.root, config.embodiment, config.data.repo_id)
    data = config.data
    chosen, held_out = split_episodes(source.num_episodes, data.validation_fraction, data.split_seed)
    statistics = compute_statistics(source, config.model.chunk_size, data.action_mode, chosen)
    robot = Robot(source.embodiment, statistics)
    spec = PolicySpec(config.model, (robot,), config.sampler)
    with progress("frames") as advance:
        cache = FrameCache.open(source, config.model.view_size, data.cache, advance)
    window = WindowConfig(config.model.chunk_size, config.model.offset_frames, config.model.view_size)
    return Data(
        source=source,
        spec=spec,
        training=WindowDataset(source, cache, window, chosen),
        validation=WindowDataset(source, cache, window, held_out) if held_out else None,
        cache=cache,
    )


def build_model(config: TrainingConfig) -> VlaMotModel:
    """A model with random weights, seeded by `train.seed`. Raises ConfigError when the options fit no model."""
    torch.manual_seed(config.train.seed)
    try:
        return VlaMotModel(config.model)
    except ConfigError:
        raise
    except Exception as error:  # whatever a library objects to: it was handed nothing but options
        reason = " ".join(str(error).split())
        raise ConfigError(
            f"no model can be built from these options ({reason}); compare conf/model/ and conf/backbone/."
        ) from error


def prepare_weights(
    model: VlaMotModel, data: Data, start: StartConfig, init_from: str | Path | None = None
) -> None:
    """Load the weights of a policy; or give a new model those of its backbone and its autoencoder, where it has some,
    and fit the foresight tokenizer on training frames. All of them or nothing.

    init_from: a checkpoint's folder or Hub repository, in our layout or the authors'.
    Raises CheckpointError when weights do not fit, ConfigError when an autoencoder would stay random.
    """
    if init_from is not None:
        return open_checkpoint(init_from).load_into(model)
    if model.tokenizer.pretrained and start.foresight is None:
        raise ConfigError(
            f"foresight tokenizer {model.config.foresight['type']!r} means nothing with random weights: give "
            "foresight.weights=<folder or file>, or start from a policy with init_from=…."
        )
    if start.backbone is not None:
        load_backbone(model, fetch(start.backbone))
    if start.foresight is not None:
        load_tokenizer(model.tokenizer, start.foresight)
    frames = _spread(data.training.frames, _FIT_FRAMES)
    model.fit_tokenizer(data.cache.gather(frames).flatten(0, 1))


def make_collate(model: VlaMotModel, data: Data) -> Collate:
    """What turns windows of this data into this model's batches."""
    processor = data.spec.processor(data.spec.robot(), model.understanding.tokenize)
    return Collate(processor, data.source.tasks)


def make_trainer(
    config: TrainingConfig, data: Data, model: VlaMotModel, run: Path, plain: Mapping[str, Any]
) -> Trainer:
    """Batches and trainer of one run folder. plain: the configuration as it is written into checkpoints."""
    collate = make_collate(model, data)
    stream = BatchStream(data.training, collate, config.train.batch_size, config.train.seed)
    validation = []
    if data.validation is not None:
        rows = _spread(torch.arange(len(data.validation)), config.train.val_samples)
        parts = rows.split(config.train.batch_size)
        validation = [collate(data.validation.__getitems__(part)) for part in parts]
    return Trainer(model, data.spec, stream, validation, config.train, run, portable(plain))


def portable(plain: Mapping[str, Any]) -> dict[str, Any]:
    """A configuration without the places of one machine: absolute paths keep only their last name.

    It travels with the policy, perhaps onto the Hub, where nobody else's folders belong.
    """

    def shortened(value: Any) -> Any:
        if isinstance(value, Mapping):
            return {str(key): shortened(inner) for key, inner in value.items()}
        if isinstance(value, list | tuple):
            return [shortened(inner) for inner in value]
        return Path(value).name if isinstance(value, str) and Path(value).is_absolute() else value

    return {str(key): shortened(value) for key, value in plain.items()}


def spread_rows(dataset: WindowDataset, count: int) -> torch.Tensor:
    """At most `count` rows of a dataset, evenly spread over its episodes."""
    return _spread(torch.arange(len(dataset)), count)


def _spread(values: torch.Tensor, count: int) -> torch.Tensor:
    if len(values) <= count:
        return values
    return values[torch.linspace(0, len(values) - 1, count).round().long()]


def require_same_data(folder: Path, facts: dict[str, object] | None, data: Data) -> None:
    """Raise CheckpointError when a run that is to be resumed was trained on other data."""
    before = (facts or {}).get("dataset")
    if before is not None and before != data.source.content_hash:
        raise CheckpointError(
            f"{folder} was trained on other data than {data.source.root} holds now; resume with the same dataset, or "
            "start a new run with init_from=…."
        )


def describe(config: TrainingConfig, data: Data, model: VlaMotModel) -> None:
    """Say what is about to be trained, durations in frames and in seconds."""
    fps, spec = data.source.fps, config.model
    weights = sum(p.numel() for p in model.parameters() if p.requires_grad)
    held_out = 0 if data.validation is None else len(set(data.validation.starts.tolist()))
    epochs = config.train.steps * config.train.batch_size / len(data.training)
    console.print(f"model      {weights:,} trained weights")
    console.print(
        f"data       {data.source.num_episodes} episodes ({held_out} for validation), "
        f"{data.source.num_frames:,} frames at {fps:g} fps, embodiment {config.embodiment.name}"
    )
    console.print(
        f"history and foresight  {spec.offset_frames} frames = {spec.offset_frames / fps:g} s; "
        f"chunk {spec.chunk_size} steps = {spec.chunk_size / fps:g} s, "
        f"{config.sampler.n_action_steps} of them executed"
    )
    console.print(
        f"training   {config.train.steps} steps of {config.train.batch_size} samples = {epochs:.1f} epochs, "
        f"seed {config.train.seed}"
    )
