"""Checkpoints in the authors' layout, `qwena1` (3B) and `interna1` (2B): read, and written back without loss.

    config.json         flat training options; the architecture is not in it (`released_architecture`)
    model.safetensors   the authors' tensor names (`released_names`), the autoencoder inside
    stats.json          robot → feature → min, max, mean, std, count
    train_config.json   the run's own options, if it is there

What that layout holds and ours does not (its configuration, its statistics word for word, constants that it stores
as tensors) travels along as `ReleasedFiles`, so that a converted checkpoint can be converted back.
"""

import logging
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from vla_mot.errors import CheckpointError, ConfigError
from vla_mot.hub.files import read_json, write_json
from vla_mot.hub.released_architecture import infer_model
from vla_mot.hub.released_names import ReleasedNames, is_constant
from vla_mot.hub.spec import PolicySpec, ReleasedFiles, SamplerConfig
from vla_mot.hub.tensors import WEIGHTS_FILE, Weights, write_tensors
from vla_mot.model.config import ModelConfig
from vla_mot.robots.actions import ABSOLUTE, DELTA
from vla_mot.robots.catalog import find_embodiment
from vla_mot.robots.robot import Robot
from vla_mot.robots.statistics_file import lacking, released_statistics

log = logging.getLogger(__name__)

TYPES = ("qwena1", "interna1")
CONFIG_FILE, STATISTICS_FILE, TRAINING_FILE = "config.json", "stats.json", "train_config.json"
_NEEDED = (
    "chunk_size", "n_action_steps", "num_inference_steps", "max_state_dim", "max_action_dim", "image_resolution",
    "tokenizer_max_length", "scale_factor", "min_period", "max_period", "time_sampling_beta_alpha",
    "time_sampling_beta_beta", "time_sampling_offset", "time_sampling_scale",
)  # fmt: skip


def read_released(
    folder: Path, weights: Weights, architecture: Mapping[str, Any], action_mode: str | None
) -> PolicySpec:
    """The spec of a checkpoint in the authors' layout.

    architecture: options of `ModelConfig` that override what the shapes say, and complete it.
    action_mode: of its statistics, which the layout does not record; by default what `train_config.json` says, else
        `delta`, and a line in the log says so.
    Raises CheckpointError when something is missing or does not fit.
    """
    config = read_json(folder / CONFIG_FILE)
    missing = [key for key in _NEEDED if key not in config]
    if missing:
        raise CheckpointError(
            f"{folder / CONFIG_FILE} lacks {', '.join(missing)}; it is no complete configuration."
        )
    if config["time_sampling_beta_beta"] != 1.0:
        raise CheckpointError(
            f"{folder / CONFIG_FILE} draws noise levels from Beta(α, {config['time_sampling_beta_beta']}); "
            "only Beta(α, 1) is known here."
        )
    numbers = read_json(folder / STATISTICS_FILE) if (folder / STATISTICS_FILE).is_file() else None
    try:
        model = ModelConfig.from_dict(infer_model(config, weights.infos, str(weights.source), architecture))
        mode = action_mode or (_recorded_mode(folder) if numbers else DELTA)
        return PolicySpec(
            model=model,
            robots=tuple(_robots(numbers or {}, mode, model.chunk_size)),
            sampler=SamplerConfig(config["num_inference_steps"], config["n_action_steps"]),
            dtype="mixed",
            released=ReleasedFiles(config, numbers, weights.metadata(), _constants(weights)),
        )
    except ConfigError as error:
        raise CheckpointError(f"{folder}: {error}") from error
    except (TypeError, ValueError, LookupError, AttributeError, ArithmeticError) as error:
        if isinstance(error, CheckpointError):
            raise
        raise CheckpointError(
            f"{folder}: its JSON files hold a value of the wrong kind ({error!r})."
        ) from error


def save_released(folder: Path, spec: PolicySpec, weights: Mapping[str, Tensor]) -> None:
    """Write a checkpoint in the authors' layout. weights: our names.

    Raises ConfigError for a policy that was not read from that layout, or that has a weight without a place in it.
    """
    files = spec.released
    if files is None:
        raise ConfigError(
            "the policy was not made from a checkpoint in the authors' layout, which holds options that ours does not."
        )
    names = ReleasedNames(files.config["type"])
    theirs = {ours: names.theirs(ours) for ours in weights}
    homeless = [ours for ours, name in theirs.items() if name is None]
    if homeless:
        raise ConfigError(f"the authors' layout has no place for {', '.join(sorted(homeless)[:6])}.")
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / CONFIG_FILE, files.config)
    if files.statistics is not None:
        write_json(folder / STATISTICS_FILE, files.statistics)
    renamed = {str(theirs[ours]): tensor for ours, tensor in weights.items()}
    write_tensors(folder / WEIGHTS_FILE, renamed | dict(files.constants), files.metadata)


def _constants(weights: Weights) -> dict[str, Tensor]:
    return dict(weights.stream([name for name in weights.infos if is_constant(name)]))


def _recorded_mode(folder: Path) -> str:
    if (folder / TRAINING_FILE).is_file():
        said = _find(read_json(folder / TRAINING_FILE), "action_mode")
        if said in (ABSOLUTE, DELTA):
            return str(said)
    log.warning(
        "%s does not say its action mode: taken as %s; action_mode=%s says otherwise", folder, DELTA, ABSOLUTE
    )
    return DELTA


def _find(tree: Any, key: str) -> Any:
    """The first value under `key`, however deep."""
    if isinstance(tree, Mapping):
        if key in tree:
            return tree[key]
        return next((found for value in tree.values() if (found := _find(value, key)) is not None), None)
    return None


def _robots(numbers: Mapping[str, Any], action_mode: str, chunk_size: int) -> Iterable[Robot]:
    """The robots whose embodiment is known; each of the others is named in the log."""
    seen: set[str] = set()
    for name, features in numbers.items():
        embodiment = find_embodiment(name)
        if embodiment is None or embodiment.name in seen:
            log.warning(
                "statistics of %r are kept, but no embodiment of that name is known (conf/embodiment/)", name
            )
            continue
        if absent := lacking(embodiment, features):
            log.warning("statistics of %r are kept, but lack %s", name, ", ".join(absent))
            continue
        seen.add(embodiment.name)
        yield Robot(embodiment, released_statistics(embodiment, features, action_mode, chunk_size))
