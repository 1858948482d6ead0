"""From composed configuration to the library's frozen dataclasses: `vla_mot.options`, and what Hydra adds to it."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vla_mot import options
from vla_mot.commands.devices import require_device
from vla_mot.errors import ConfigError
from vla_mot.hub.spec import SamplerConfig
from vla_mot.model.config import ModelConfig
from vla_mot.options import fit
from vla_mot.robots.embodiment import Embodiment
from vla_mot.train.config import TrainConfig

REQUIRED = "???"  # how a configuration file says that a value must be given


def section[T](cls: type[T], name: str, values: Any) -> T:
    """`options.section` of composed configuration, in which `???` stands for a value that must be given.

    Raises ConfigError naming the key that is not given, unknown, or of another type.
    """
    _require_given(name, values)
    return options.section(cls, name, values)


def _require_given(name: str, values: Any) -> None:
    if isinstance(values, Mapping):
        for key, value in values.items():
            _require_given(f"{name}.{key}" if name else str(key), value)
    elif values == REQUIRED:
        raise ConfigError(f"{name} must be given: write {name}=….")


# ---- what the commands share --------------------------------------------------------------------------------


@dataclass(frozen=True)
class DataConfig:
    """One dataset; see conf/data/lerobot.yaml."""

    root: Path
    repo_id: str | None = None
    action_mode: str = "delta"
    validation_fraction: float = 0.1
    split_seed: int = 0
    cache: Path | None = None


@dataclass(frozen=True)
class StartConfig:
    """Where a new model's weights come from; None: random ones. `backbone.weights` and `foresight.weights`.

    backbone: a folder or Hub repository in the stock layout of its family. foresight: a folder or file of
    `vla_mot.hub.foresight_weights`.
    """

    backbone: str | None = None
    foresight: Path | None = None


@dataclass(frozen=True)
class TrainingConfig:
    """Everything that decides what a training run computes."""

    model: ModelConfig
    embodiment: Embodiment
    data: DataConfig
    train: TrainConfig
    sampler: SamplerConfig
    start: StartConfig = StartConfig()


def training_config(config: Mapping[str, Any]) -> TrainingConfig:
    """Read the groups model, backbone, foresight, embodiment, data, train and sampler.

    Raises ConfigError for what does not fit, be it a device that this machine does not have.
    """
    embodiment = section(Embodiment, "embodiment", config["embodiment"])
    train = section(TrainConfig, "train", config["train"])
    require_device("train.device", train.device)
    return TrainingConfig(
        model=model_config(config, embodiment),
        embodiment=embodiment,
        data=section(DataConfig, "data", config["data"]),
        train=train,
        sampler=section(SamplerConfig, "sampler", config["sampler"]),
        start=StartConfig(
            backbone=fit(str | None, "backbone.weights", config["backbone"].get("weights")),
            foresight=fit(Path | None, "foresight.weights", config["foresight"].get("weights")),
        ),
    )


def model_config(config: Mapping[str, Any], embodiment: Embodiment) -> ModelConfig:
    """Join the groups model, backbone and foresight; m is stated in frames, or in seconds of the embodiment."""
    foresight, backbone = dict(config["foresight"]), dict(config["backbone"])
    for part in (foresight, backbone):
        part.pop("weights", None)  # where training starts is no part of the architecture: see `StartConfig`
    frames = fit(int | None, "foresight.offset_frames", foresight.pop("offset_frames", None))
    seconds = fit(float | None, "foresight.offset_seconds", foresight.pop("offset_seconds", None))
    try:
        offset = embodiment.frames(frames=frames, seconds=seconds)
    except ConfigError as error:
        raise ConfigError(
            f"{error} Set foresight.offset_frames or foresight.offset_seconds, and the other one to null."
        ) from error
    parts = {"backbone": backbone, "foresight": foresight, "offset_frames": offset}
    return section(ModelConfig, "model", {**config["model"], **parts})
