"""Our own checkpoint folder.

    config.json         type vla_mot (readable as a LeRobot PreTrainedConfig), model, embodiments, sampler
    model.safetensors   every weight and stored statistic of the model; or shards with their index
    stats.json          normalization statistics: embodiment → action mode → feature
    golden.safetensors  a small observation and the actions that the policy answered: `vla_mot.infer.golden`
    training.json       the resolved configuration of the run that made it, if there was one
    manifest.json       format, versions, and the SHA-256 of every other file
    released_*          what the authors' layout held beside, if it was converted from there
    policy_*.json       the processors that LeRobot's commands look for beside a policy; nothing else reads them

Nothing is loaded by halves: a weight that is missing, unexpected or of another shape or dtype is an error that
names it, and so is a truncated file.
"""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vla_mot.errors import CheckpointError, ConfigError
from vla_mot.hub.files import read_json, write_json
from vla_mot.hub.lerobot_processors import PROCESSOR_FILES
from vla_mot.hub.manifest import write_manifest
from vla_mot.hub.spec import TYPE, PolicySpec, ReleasedFiles
from vla_mot.hub.tensors import Rename, Weights, load_weights, same_name, write_tensors, write_weights
from vla_mot.model.model import VlaMotModel

CONFIG_FILE, STATISTICS_FILE = "config.json", "stats.json"
GOLDEN_FILE, TRAINING_FILE = "golden.safetensors", "training.json"
_RELEASED_CONFIG, _RELEASED_STATISTICS = "released_config.json", "released_stats.json"
_RELEASED_CONSTANTS = "released_constants.safetensors"


def save_policy(
    folder: Path,
    spec: PolicySpec,
    weights: Mapping[str, Tensor],
    *,
    golden: Mapping[str, Tensor] | None = None,
    training: Mapping[str, Any] | None = None,
) -> None:
    """Write a whole checkpoint into `folder` (made if needed). The caller renames a finished folder into place.

    golden: see `vla_mot.infer.golden`. training: the resolved configuration.
    """
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / CONFIG_FILE, spec.config_dict())
    write_json(folder / STATISTICS_FILE, spec.statistics_dict())
    for name, content in PROCESSOR_FILES.items():
        write_json(folder / name, content)
    if spec.released is not None:
        _write_released_files(folder, spec.released)
    if training is not None:
        write_json(folder / TRAINING_FILE, training)
    if golden is not None:
        write_tensors(folder / GOLDEN_FILE, golden)
    write_weights(folder, weights)
    write_manifest(folder)


def read_spec(folder: Path) -> PolicySpec:
    """Read `config.json` and `stats.json`. Raises CheckpointError naming the file that does not fit."""
    config = read_json(folder / CONFIG_FILE)
    if config.get("type") != TYPE:
        raise CheckpointError(
            f"{folder / CONFIG_FILE} says type {config.get('type')!r}; a vla_mot checkpoint says {TYPE!r}."
        )
    try:
        spec = PolicySpec.from_dicts(config, read_json(folder / STATISTICS_FILE))
        converted = (folder / _RELEASED_CONFIG).is_file()
        return replace(spec, released=_read_released_files(folder)) if converted else spec
    except ConfigError as error:
        raise CheckpointError(f"{folder}: {error}") from error
    except (TypeError, ValueError, LookupError, AttributeError) as error:
        raise CheckpointError(
            f"{folder}: config.json or stats.json holds a value of the wrong kind ({error!r}); write it again."
        ) from error


def load_model(
    spec: PolicySpec,
    weights: Weights,
    *,
    rename: Rename = same_name,
    device: torch.device | str = "cpu",
    dtype: torch.dtype | None = None,
) -> VlaMotModel:
    """Build the model and load its weights, one tensor at a time, straight to `device`.

    rename: name in the file → ours. dtype: of the weights in memory; by default as they are stored.
    Raises CheckpointError naming every weight that does not fit.
    """
    with torch.device("meta"):
        model = VlaMotModel(spec.model)
    if spec.dtype == "mixed":
        stored = {ours: info.dtype for name, info in weights.infos.items() if (ours := rename(name))}
    else:
        model.cast(getattr(torch, spec.dtype))
        stored = {name: tensor.dtype for name, tensor in model.state_dict().items()}
    if dtype is not None:
        model.cast(dtype)
    as_stored = spec.dtype == "mixed" and dtype is None
    load_weights(model, weights, rename=rename, stored=stored, as_stored=as_stored, device=device)
    model.reset_buffers(device)
    return model


def _write_released_files(folder: Path, files: ReleasedFiles) -> None:
    write_json(folder / _RELEASED_CONFIG, files.config)
    if files.statistics is not None:
        write_json(folder / _RELEASED_STATISTICS, files.statistics)
    write_tensors(folder / _RELEASED_CONSTANTS, files.constants, files.metadata)


def _read_released_files(folder: Path) -> ReleasedFiles:
    constants, numbers = Weights.open(folder / _RELEASED_CONSTANTS), folder / _RELEASED_STATISTICS
    return ReleasedFiles(
        config=read_json(folder / _RELEASED_CONFIG),
        statistics=read_json(numbers) if numbers.is_file() else None,
        metadata=constants.metadata(),
        constants=constants.read(),
    )
