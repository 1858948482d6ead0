"""What training commands read: data, model, training and sampler, from composed configuration to frozen dataclasses."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from vla_mot.commands.devices import require_device
from vla_mot.commands.settings import section
from vla_mot.data.frames import FramesConfig
from vla_mot.data.mixture_config import Group, MixtureConfig, Override
from vla_mot.data.recipe import SplitConfig
from vla_mot.errors import ConfigError
from vla_mot.hub.spec import SamplerConfig
from vla_mot.model.config import ModelConfig
from vla_mot.options import at_least, fit
from vla_mot.robots.augmentation import AugmentationConfig
from vla_mot.robots.embodiment import Embodiment
from vla_mot.train.adapters import require_peft
from vla_mot.train.config import TrainConfig
from vla_mot.train.eight_bit import require_bitsandbytes
from vla_mot.train.writers import require_writers


@dataclass(frozen=True)
class DataConfig:
    """One dataset or a mixture, and how it is read; see conf/data/reading.yaml and conf/data/mixture.yaml."""

    root: Path | None
    groups: Mapping[str, Group] | None = None
    datasets: Mapping[str, Override] | None = None
    embodiments: tuple[Path, ...] = ()
    action_mode: str = "delta"
    statistics: Path | None = None
    validation_fraction: float = 0.1
    split_seed: int = 0
    frames: Literal["cache", "video"] = "cache"
    prepare: bool = True
    cache: Path | None = None
    cache_limit_gib: float | None = None
    decoder: Literal["auto", "torchcodec", "pyav"] = "auto"
    latents: Literal["float32", "float16"] | None = None
    augmentation: AugmentationConfig = field(default_factory=AugmentationConfig)
    assignment: Literal["exact", "lpt"] = "exact"
    shards: int | None = None
    workers: int = 0
    most_open: int = 256
    skip_broken: int = 0

    def __post_init__(self) -> None:
        at_least(1, {"data.most_open": self.most_open})
        at_least(0, {"data.workers": self.workers, "data.skip_broken": self.skip_broken})
        if self.latents is not None and not self.augmentation.is_off:
            raise ConfigError(
                "data.latents caches the latents of the pictures as recorded, which data.augmentation would change; "
                "turn one of them off."
            )
        if self.shards is not None:
            at_least(1, {"data.shards": self.shards})

    def mixture(self, embodiment: Embodiment | None) -> MixtureConfig:
        """The datasets that are asked for; all of one robot where it is named."""
        return MixtureConfig(self.root, self.groups or {}, self.datasets or {}, self.embodiments, embodiment)

    @property
    def pictures(self) -> FramesConfig:
        """Where pictures come from."""
        return FramesConfig(self.frames, self.cache, self.cache_limit_gib, self.decoder)

    @property
    def split(self) -> SplitConfig:
        """Which episodes validate."""
        return SplitConfig(self.validation_fraction, self.split_seed)


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
    embodiment: Embodiment | None
    data: DataConfig
    train: TrainConfig
    sampler: SamplerConfig
    start: StartConfig = StartConfig()


def training_config(config: Mapping[str, Any]) -> TrainingConfig:
    """Read the groups model, backbone, foresight, embodiment (unless the datasets' own), data, train and sampler.

    Raises ConfigError for what does not fit, be it a device or a package that this machine does not have.
    """
    told = config.get("embodiment")
    embodiment = None if told is None else section(Embodiment, "embodiment", told)
    train = section(TrainConfig, "train", config["train"])
    require_device("train.device", train.device)
    require_writers(train.log)
    require_peft(train.experts)
    if train.optimizer == "adamw8bit":
        require_bitsandbytes()
    model, data = model_config(config, embodiment), section(DataConfig, "data", config["data"])
    if train.keep_best and not data.validation_fraction:  # said before anything is decoded
        raise ConfigError(
            "train.keep_best=true keeps the checkpoint that validated best, but data.validation_fraction is 0: raise "
            "it, or set train.keep_best=false."
        )
    if data.latents is not None and model.generation is None:
        raise ConfigError(
            f"data.latents={data.latents} caches what a foresight tokenizer encodes, which a model without generation "
            "expert does not have; set data.latents=null."
        )
    return TrainingConfig(
        model=model,
        embodiment=embodiment,
        data=data,
        train=train,
        sampler=section(SamplerConfig, "sampler", config["sampler"]),
        start=StartConfig(
            backbone=fit(str | None, "backbone.weights", config["backbone"].get("weights")),
            foresight=fit(Path | None, "foresight.weights", config["foresight"].get("weights")),
        ),
    )


def model_config(config: Mapping[str, Any], embodiment: Embodiment | None) -> ModelConfig:
    """Join the groups model, backbone and foresight.

    m is stated in frames, or in seconds, which become the frames of the one embodiment that is named; of several robots
    each counts its own. Where nothing is foreseen (`foresight=none`) there is no m.
    """
    foresight, backbone = dict(config["foresight"]), dict(config["backbone"])
    for part in (foresight, backbone):
        part.pop("weights", None)  # where training starts is no part of the architecture: see `StartConfig`
    if foresight.get("type", "") is None:  # what an experiment says beside is of one that is left out
        return section(ModelConfig, "model", {**config["model"], "backbone": backbone, "foresight": None})
    frames = fit(int | None, "foresight.offset_frames", foresight.pop("offset_frames", None))
    seconds = fit(float | None, "foresight.offset_seconds", foresight.pop("offset_seconds", None))
    try:
        offset = _offset(embodiment, frames, seconds)
    except ConfigError as error:
        raise ConfigError(
            f"{error} Set foresight.offset_frames or foresight.offset_seconds, and the other one to null."
        ) from error
    history = {key: foresight.pop(key) for key in ("history",) if key in foresight}
    parts = {"backbone": backbone, "foresight": foresight, **offset, **history}
    return section(ModelConfig, "model", {**config["model"], **parts})


def _offset(embodiment: Embodiment | None, frames: int | None, seconds: float | None) -> dict[str, Any]:
    if seconds is not None and not 0 < seconds < float("inf"):
        raise ConfigError(f"foresight.offset_seconds must be positive, got {seconds}.")
    if embodiment is not None:
        return {"offset_frames": embodiment.frames(frames=frames, seconds=seconds)}
    if (frames is None) == (seconds is None):
        raise ConfigError(f"state a duration in frames or in seconds, not both: {frames=}, {seconds=}.")
    return {"offset_seconds": seconds} if frames is None else {"offset_frames": frames}
