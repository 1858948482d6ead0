"""From composed configuration to the library's frozen dataclasses, strictly: nothing unknown, nothing of a wrong type.

Every message names the key, what was expected and what came.
"""

import types
from collections.abc import Mapping
from dataclasses import MISSING, dataclass, fields, is_dataclass
from pathlib import Path
from typing import Any, Literal, Union, cast, get_args, get_origin, get_type_hints

from vla_mot.errors import ConfigError, unknown_name
from vla_mot.hub.native import SamplerConfig
from vla_mot.model.config import ModelConfig
from vla_mot.robots.embodiment import Embodiment
from vla_mot.train.config import TrainConfig

REQUIRED = "???"  # how a configuration file says that a value must be given
_NAMES = {int: "a whole number", float: "a number", bool: "true or false", str: "text", Path: "a path"}


def section[T](cls: type[T], name: str, values: Any) -> T:
    """Build a dataclass from the mapping that stands under `name` in the configuration.

    Raises ConfigError for a key that it does not have, one that is missing, or a value of another type.
    """
    parts = fields(cast(Any, cls))
    known = [part.name for part in parts]
    if not isinstance(values, Mapping):
        raise ConfigError(_mismatch(name, f"a group of keys ({', '.join(known)})", values))
    if cls is Embodiment:
        return cast(T, _embodiment(name, values))
    prefix = f"{name}." if name else ""
    for key in values:
        if key not in known:
            raise ConfigError(unknown_name("key", f"{prefix}{key}", [f"{prefix}{k}" for k in known]))
    for part in parts:
        needed = part.default is MISSING and part.default_factory is MISSING
        if values.get(part.name, REQUIRED if needed else None) == REQUIRED:
            raise ConfigError(f"{prefix}{part.name} must be given: write {prefix}{part.name}=….")
    hints = get_type_hints(cls)
    return cls(**{key: fit(hints[key], f"{prefix}{key}", value) for key, value in values.items()})


def fit(kind: Any, name: str, value: Any) -> Any:
    """Return `value` as the annotated type `kind`. Raises ConfigError naming the key when it is of another."""
    origin, choices = get_origin(kind), get_args(kind)
    if origin in (Union, types.UnionType):
        if value is None and type(None) in choices:
            return None
        return fit(next(c for c in choices if c is not type(None)), name, value)
    if origin is Literal:
        if value not in choices:
            raise ConfigError(unknown_name(f"value for {name}:", str(value), choices))
        return value
    if origin is tuple:
        return _tuple(choices, name, value)
    if is_dataclass(kind):
        return section(cast(type, kind), name, value)
    if origin is not None and isinstance(origin, type) and issubclass(origin, Mapping):
        if not isinstance(value, Mapping):
            raise ConfigError(_mismatch(name, "a group of keys", value))
        return dict(value)
    return _scalar(kind, name, value)


def _scalar(kind: type, name: str, value: Any) -> Any:
    right = isinstance(value, kind) and (kind is bool or not isinstance(value, bool))
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if kind is Path and isinstance(value, str):
        return Path(value)
    if kind is str and isinstance(value, int | float) and not isinstance(value, bool):
        return str(value)
    if not right:
        raise ConfigError(_mismatch(name, _NAMES.get(kind, kind.__name__), value))
    return value


def _tuple(kinds: tuple[Any, ...], name: str, value: Any) -> tuple[Any, ...]:
    if not isinstance(value, list | tuple):
        raise ConfigError(_mismatch(name, "a list", value))
    if len(kinds) == 2 and kinds[1] is Ellipsis:
        kinds = (kinds[0],) * len(value)
    if len(kinds) != len(value):
        raise ConfigError(_mismatch(name, f"a list of {len(kinds)} values", value))
    return tuple(
        fit(kind, f"{name}[{place}]", item)
        for place, (kind, item) in enumerate(zip(kinds, value, strict=True))
    )


def _embodiment(name: str, values: Mapping[str, Any]) -> Embodiment:
    try:
        return Embodiment.from_dict(values)
    except ConfigError:
        raise
    except (TypeError, ValueError, KeyError, AttributeError) as error:
        raise ConfigError(
            f"{name} is no embodiment ({type(error).__name__}: {error}); conf/embodiment/conveyor.yaml shows one."
        ) from error


def _mismatch(name: str, expected: str, value: Any) -> str:
    return f"{name}: expected {expected}, got {value!r} ({type(value).__name__})."


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
class TrainingConfig:
    """Everything that decides what a training run computes."""

    model: ModelConfig
    embodiment: Embodiment
    data: DataConfig
    train: TrainConfig
    sampler: SamplerConfig


def training_config(config: Mapping[str, Any]) -> TrainingConfig:
    """Read the groups model, backbone, foresight, embodiment, data, train and sampler."""
    embodiment = section(Embodiment, "embodiment", config["embodiment"])
    return TrainingConfig(
        model=model_config(config, embodiment),
        embodiment=embodiment,
        data=section(DataConfig, "data", config["data"]),
        train=section(TrainConfig, "train", config["train"]),
        sampler=section(SamplerConfig, "sampler", config["sampler"]),
    )


def model_config(config: Mapping[str, Any], embodiment: Embodiment) -> ModelConfig:
    """Join the groups model, backbone and foresight; m is stated in frames, or in seconds of the embodiment."""
    foresight = dict(config["foresight"])
    frames = fit(int | None, "foresight.offset_frames", foresight.pop("offset_frames", None))
    seconds = fit(float | None, "foresight.offset_seconds", foresight.pop("offset_seconds", None))
    try:
        offset = embodiment.frames(frames=frames, seconds=seconds)
    except ConfigError as error:
        raise ConfigError(
            f"{error} Set foresight.offset_frames or foresight.offset_seconds, and the other one to null."
        ) from error
    parts = {"backbone": config["backbone"], "foresight": foresight, "offset_frames": offset}
    return section(ModelConfig, "model", {**config["model"], **parts})
