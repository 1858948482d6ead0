"""Our own checkpoint folder.

    config.json         type vla_mot (readable as a LeRobot PreTrainedConfig), model, embodiment, action mode, sampler
    model.safetensors   every weight and stored statistic of the model
    stats.json          normalization statistics: embodiment → action mode → feature
    policy_*.json       the processors that LeRobot's commands look for beside a policy; nothing else reads them

Nothing is loaded by halves: a weight that is missing, unexpected or of another shape or dtype is an error that
names it, and so is a truncated file.
"""

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from vla_mot.errors import CheckpointError, ConfigError
from vla_mot.hub.lerobot_processors import PROCESSOR_FILES
from vla_mot.model.config import ModelConfig
from vla_mot.robots.embodiment import Embodiment
from vla_mot.robots.normalization import Statistics
from vla_mot.robots.processor import Processor, Tokenize

TYPE = "vla_mot"
CONFIG_FILE, WEIGHTS_FILE, STATISTICS_FILE = "config.json", "model.safetensors", "stats.json"
_KINDS: dict[str, type] = {
    "model": Mapping,
    "embodiment": Mapping,
    "action_mode": str,
    "num_steps": int,
    "n_action_steps": int,
}
_KIND_NAMES = {Mapping: "an object", str: "a string", int: "a whole number"}


@dataclass(frozen=True)
class SamplerConfig:
    """num_steps: Euler steps. n_action_steps: how many steps of a chunk are executed before the next one."""

    num_steps: int = 10
    n_action_steps: int = 50


@dataclass(frozen=True)
class PolicySpec:
    """Everything about a policy but its weights."""

    model: ModelConfig
    embodiment: Embodiment
    statistics: Statistics
    action_mode: str
    sampler: SamplerConfig

    def __post_init__(self) -> None:
        self.statistics.require(
            embodiment=self.embodiment.name,
            action_mode=self.action_mode,
            chunk_size=self.model.chunk_size,
        )
        if not 1 <= self.sampler.n_action_steps <= self.model.chunk_size:
            raise ConfigError(
                f"n_action_steps must lie in 1 … chunk_size = {self.model.chunk_size}, "
                f"got {self.sampler.n_action_steps}; see conf/sampler/."
            )
        slots, width = len(self.embodiment.cameras), self.model.num_views
        if slots > width:
            raise ConfigError(
                f"embodiment {self.embodiment.name!r} has {slots} camera slots, the model {width}; "
                "raise num_views in conf/model/."
            )

    def processor(self, tokenize: Tokenize) -> Processor:
        """What turns this robot's units into this model's tensors; `tokenize` is the backbone's."""
        return Processor(
            embodiment=self.embodiment,
            statistics=self.statistics,
            tokenize=tokenize,
            image_size=self.model.view_size,
            state_width=self.model.max_state_dim,
            action_width=self.model.max_action_dim,
        )

    def config_dict(self) -> dict[str, Any]:
        """The content of `config.json`."""
        image = {"type": "VISUAL", "shape": [3, *self.model.view_size]}
        return {
            "type": TYPE,
            "n_obs_steps": 1,
            "input_features": {key: image for _, key in self.embodiment.present_cameras}
            | {f.key: {"type": "STATE", "shape": [len(f.names)]} for f in self.embodiment.state},
            "output_features": {"action": {"type": "ACTION", "shape": [self.embodiment.action_dim]}},
            "chunk_size": self.model.chunk_size,
            "n_action_steps": self.sampler.n_action_steps,
            "num_steps": self.sampler.num_steps,
            "action_mode": self.action_mode,
            "model": self.model.to_dict(),
            "embodiment": self.embodiment.to_dict(),
        }

    def statistics_dict(self) -> dict[str, Any]:
        """The content of `stats.json`."""
        return {self.embodiment.name: {self.action_mode: self.statistics.to_dict()}}

    @classmethod
    def from_dicts(cls, config: Mapping[str, Any], statistics: Mapping[str, Any]) -> "PolicySpec":
        """The inverse of `config_dict` and `statistics_dict`. Raises ConfigError for what does not fit."""
        for key, kind in _KINDS.items():
            if key not in config:
                raise ConfigError(f"config.json lacks {key!r}; it is no complete vla_mot configuration.")
            if not isinstance(config[key], kind):
                raise ConfigError(f"config.json says {key} = {config[key]!r}; expected {_KIND_NAMES[kind]}.")
        embodiment = Embodiment.from_dict(config["embodiment"])
        mode = config["action_mode"]
        found = statistics.get(embodiment.name, {})
        if mode not in found:
            raise ConfigError(
                f"stats.json has no statistics for embodiment {embodiment.name!r} in mode {mode!r}; "
                f"it has {', '.join(f'{e}/{m}' for e in statistics for m in statistics[e]) or 'none'}."
            )
        return cls(
            model=ModelConfig.from_dict(config["model"]),
            embodiment=embodiment,
            statistics=Statistics.from_dict(found[mode]),
            action_mode=mode,
            sampler=SamplerConfig(config["num_steps"], config["n_action_steps"]),
        )


def save_policy(folder: Path, spec: PolicySpec, weights: Mapping[str, Tensor]) -> None:
    """Write a whole checkpoint into `folder` (made if needed). The caller renames a finished folder into place."""
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / CONFIG_FILE, spec.config_dict())
    write_json(folder / STATISTICS_FILE, spec.statistics_dict())
    for name, content in PROCESSOR_FILES.items():
        write_json(folder / name, content)
    write_tensors(folder / WEIGHTS_FILE, weights)


def read_spec(folder: Path) -> PolicySpec:
    """Read `config.json` and `stats.json`. Raises CheckpointError naming the file that does not fit."""
    config = read_json(folder / CONFIG_FILE)
    if config.get("type") != TYPE:
        raise CheckpointError(
            f"{folder / CONFIG_FILE} says type {config.get('type')!r}; a vla_mot checkpoint says {TYPE!r}."
        )
    try:
        return PolicySpec.from_dicts(config, read_json(folder / STATISTICS_FILE))
    except ConfigError as error:
        raise CheckpointError(f"{folder}: {error}") from error
    except (TypeError, ValueError, KeyError, AttributeError) as error:
        raise CheckpointError(
            f"{folder}: config.json or stats.json holds a value of the wrong kind ({error!r}); write it again."
        ) from error


def load_weights(model: torch.nn.Module, path: Path) -> None:
    """Load a safetensors file into `model`, all of it or nothing.

    Raises CheckpointError naming every weight that is missing, unexpected, or of another shape or dtype.
    """
    expected = model.state_dict()
    found = read_tensors(path)
    problems = [f"missing {name} {tuple(expected[name].shape)}" for name in expected if name not in found]
    problems += [f"unexpected {name} {tuple(found[name].shape)}" for name in found if name not in expected]
    for name in expected.keys() & found.keys():
        ours, theirs = expected[name], found[name]
        if ours.shape != theirs.shape:
            problems.append(f"{name} has shape {tuple(theirs.shape)}, the model's is {tuple(ours.shape)}")
        elif ours.dtype != theirs.dtype:
            problems.append(f"{name} has dtype {theirs.dtype}, the model's is {ours.dtype}")
    if problems:
        raise CheckpointError(f"{path} does not fit the model: {_shortened(sorted(problems))}.")
    model.load_state_dict(found, strict=True)


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Read every tensor of a safetensors file. Raises CheckpointError when it is missing or damaged."""
    if not path.is_file():
        raise CheckpointError(f"{path} is missing; a checkpoint needs it.")
    try:
        with safe_open(path, framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  (not a dict)
    except (SafetensorError, OSError) as error:
        size = path.stat().st_size
        raise CheckpointError(
            f"{path} ({size} bytes) is truncated or no safetensors file ({error}); fetch or write it again."
        ) from error


def write_tensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write a safetensors file and flush it to disk."""
    save_file({name: tensor.detach().contiguous() for name, tensor in tensors.items()}, path)
    with path.open("rb") as file:
        os.fsync(file.fileno())


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object. Raises CheckpointError when it is missing, damaged or something else."""
    if not path.is_file():
        raise CheckpointError(f"{path} is missing; {path.parent} is no complete vla_mot checkpoint.")
    try:
        content = json.loads(path.read_text())
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise CheckpointError(f"{path} is damaged: {error}.") from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{path} holds a {type(content).__name__}, not an object.")
    return content


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write a JSON object and flush it to disk."""
    with path.open("w") as file:
        json.dump(content, file, indent=2)
        file.write("\n")
        file.flush()
        os.fsync(file.fileno())


def _shortened(problems: list[str], most: int = 12) -> str:
    more = f"; and {len(problems) - most} more" if len(problems) > most else ""
    return "; ".join(problems[:most]) + more
