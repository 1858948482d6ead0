"""Our own checkpoint folder.

    config.json         type vla_mot (readable as a LeRobot PreTrainedConfig), model, embodiments, sampler
    model.safetensors   every weight and stored statistic of the model; or shards with their index
    stats.json          normalization statistics: embodiment → action mode → feature
    golden.safetensors  a small observation and the actions that the policy answered: `vla_mot.infer.golden`
    training.json       the resolved configuration of the run that made it, if there was one
    manifest.json       format, versions, and the SHA-256 of every other file
    tokenizer/          the backbone's tokenizer, if it came from a folder
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
from vla_mot.hub.dtypes import expected_dtypes, require_dtypes
from vla_mot.hub.files import read_json, write_json
from vla_mot.hub.lerobot_processors import PROCESSOR_FILES
from vla_mot.hub.manifest import MANIFEST_FILE, write_manifest
from vla_mot.hub.released_files import read_kept, write_kept
from vla_mot.hub.remote import OWN_FILES, TOKENIZER
from vla_mot.hub.replacing import replaced
from vla_mot.hub.spec import TYPE, PolicySpec
from vla_mot.hub.tensors import (
    INDEX_FILE,
    SHARDS,
    WEIGHTS_FILE,
    Rename,
    Weights,
    load_weights,
    same_name,
    write_tensors,
    write_weights,
)
from vla_mot.hub.tokenizer_files import placed, portable, save_tokenizer
from vla_mot.model.model import VlaMotModel

CONFIG_FILE, STATISTICS_FILE = "config.json", "stats.json"
GOLDEN_FILE, TRAINING_FILE = "golden.safetensors", "training.json"
_OURS = (
    CONFIG_FILE, STATISTICS_FILE, GOLDEN_FILE, TRAINING_FILE, MANIFEST_FILE, WEIGHTS_FILE, INDEX_FILE, SHARDS,
    "released_*", "policy_*", TOKENIZER,
)  # fmt: skip
"""Whatever a checkpoint may consist of: what of an older one does not give way would be taken for the new one's."""


def save_policy(
    folder: Path,
    spec: PolicySpec,
    weights: Mapping[str, Tensor],
    *,
    golden: Mapping[str, Tensor] | None = None,
    training: Mapping[str, Any] | None = None,
) -> None:
    """Write a whole checkpoint. A new folder appears when it is complete; in an old one, an older checkpoint's files
    give way to it, whatever they were called, and other files stay.

    golden: see `vla_mot.infer.golden`. training: the resolved configuration.
    Raises ConfigError, before anything is written, for weights of another dtype than `spec` says.
    """
    require_dtypes(spec, {name: tensor.dtype for name, tensor in weights.items()})
    new = not folder.exists()
    with replaced(folder, _OURS) as unfinished:
        _write(unfinished, spec, weights, golden, training)
        if new:
            write_manifest(unfinished, OWN_FILES)
    if not new:
        write_manifest(folder, OWN_FILES)  # last, and of the files that were there, too


def _write(
    folder: Path,
    spec: PolicySpec,
    weights: Mapping[str, Tensor],
    golden: Mapping[str, Tensor] | None,
    training: Mapping[str, Any] | None,
) -> None:
    config = spec.config_dict()
    save_tokenizer(folder, config["model"])
    write_json(folder / CONFIG_FILE, config | {"model": portable(config["model"])})
    write_json(folder / STATISTICS_FILE, spec.statistics_dict())
    for name, content in PROCESSOR_FILES.items():
        write_json(folder / name, content)
    if spec.released is not None:
        write_kept(folder, spec.released)
    if training is not None:
        write_json(folder / TRAINING_FILE, training)
    if golden is not None:
        write_tensors(folder / GOLDEN_FILE, golden)
    write_weights(folder, weights)


def read_spec(folder: Path) -> PolicySpec:
    """Read `config.json` and `stats.json`. Raises CheckpointError naming the file that does not fit."""
    config = read_json(folder / CONFIG_FILE)
    if config.get("type") != TYPE:
        raise CheckpointError(
            f"{folder / CONFIG_FILE} says type {config.get('type')!r}; a vla_mot checkpoint says {TYPE!r}."
        )
    try:
        model = placed(folder, config["model"]) if isinstance(config.get("model"), Mapping) else None
        spec = PolicySpec.from_dicts(
            config if model is None else config | {"model": model}, read_json(folder / STATISTICS_FILE)
        )
        return replace(spec, released=read_kept(folder))
    except CheckpointError:
        raise
    except ConfigError as error:
        raise CheckpointError(f"{folder}: {error}") from error
    except (TypeError, ValueError, LookupError, AttributeError, ArithmeticError) as error:
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
    Raises CheckpointError naming every weight that does not fit, or when the options describe no model.
    """
    model = _empty_model(spec, weights.source)
    found = {ours: info.dtype for name, info in weights.infos.items() if (ours := rename(name))}
    stored = expected_dtypes(spec, found)
    if dtype is not None:
        model.cast(dtype)
    load_weights(model, weights, rename=rename, stored=stored, as_stored=dtype is None, device=device)
    model.reset_buffers(device)
    return model


def _empty_model(spec: PolicySpec, source: Path) -> VlaMotModel:
    try:
        with torch.device("meta"):
            return VlaMotModel(spec.model)
    except ConfigError:
        raise
    except Exception as error:  # whatever a library objects to: it was handed nothing but options
        reason = " ".join(str(error).split())
        raise CheckpointError(
            f"the options beside {source} describe no model that can be built ({type(error).__name__}: {reason}); "
            "fetch or write the checkpoint again."
        ) from error
