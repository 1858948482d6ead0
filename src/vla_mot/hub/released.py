"""Checkpoints in the authors' layout, `qwena1` (3B) and `interna1` (2B): read, and written back without loss.

    config.json         flat training options; the architecture is not in it (`released_architecture`)
    model.safetensors   the authors' tensor names (`released_names`), the autoencoder inside
    stats.json          robot → feature → min, max, mean, std, count
    train_config.json   the run's own options, if it is there

What that layout holds and ours does not (its JSON files word for word, constants that it stores as tensors) travels
along as `ReleasedFiles`, so that a converted checkpoint can be converted back.
"""

import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import Tensor

from vla_mot.errors import CheckpointError, ConfigError
from vla_mot.hub.released_architecture import infer_model
from vla_mot.hub.released_constants import read_constants
from vla_mot.hub.released_files import CONFIG_FILE, ReleasedFiles
from vla_mot.hub.released_names import ReleasedNames
from vla_mot.hub.spec import PolicySpec, SamplerConfig, require_fit
from vla_mot.hub.tensors import WEIGHTS_FILE, Weights, write_tensors
from vla_mot.model.config import ModelConfig
from vla_mot.robots.actions import ABSOLUTE, DELTA
from vla_mot.robots.catalog import find_embodiment
from vla_mot.robots.robot import Robot
from vla_mot.robots.statistics_file import lacking, released_statistics

log = logging.getLogger(__name__)

TYPES = ("qwena1", "interna1")
_NEEDED = (
    "chunk_size", "n_action_steps", "num_inference_steps", "max_state_dim", "max_action_dim", "image_resolution",
    "tokenizer_max_length", "scale_factor", "min_period", "max_period", "time_sampling_beta_alpha",
    "time_sampling_beta_beta", "time_sampling_offset", "time_sampling_scale",
)  # fmt: skip


def read_released(
    folder: Path,
    weights: Weights,
    architecture: Mapping[str, Any],
    action_mode: str | None,
    embodiments: Sequence[Path] = (),
) -> PolicySpec:
    """The spec of a checkpoint in the authors' layout.

    architecture: options of `ModelConfig` that override what the shapes say, and complete it.
    action_mode: of its statistics, which `stats.json` does not record; by default what `train_config.json` says, else
        `delta`, and a line in the log says so. What is stated here is kept, as that file would say it.
    embodiments: a user's own YAML files of robots; see `robots.catalog`.
    Raises CheckpointError when something is missing or does not fit.
    """
    files = ReleasedFiles.read(folder, weights.metadata(), {})
    config, numbers = files.config, files.statistics
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
    try:
        model = ModelConfig.from_dict(infer_model(config, weights.infos, str(weights.source), architecture))
        if action_mode is not None:
            files = replace(files, training=files.with_action_mode(action_mode))
        spec = PolicySpec(
            model=model,
            robots=(),
            sampler=SamplerConfig(config["num_inference_steps"], config["n_action_steps"]),
            dtype="mixed",
            released=replace(files, constants=read_constants(weights, config)),
        )
        return (
            replace(spec, robots=tuple(_robots(spec, _mode(files, folder), embodiments))) if numbers else spec
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

    Its files are those that it came with, but for what the spec says otherwise: sampler, dtype, action mode.
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
    _as_told(spec, files).write(folder)
    renamed = {str(theirs[ours]): tensor for ours, tensor in weights.items()}
    write_tensors(folder / WEIGHTS_FILE, renamed | dict(files.constants), files.metadata)


def _mode(files: ReleasedFiles, folder: Path) -> str:
    """The action mode that is recorded, or the one that is assumed."""
    if (recorded := files.action_mode) is not None:
        return recorded
    log.warning(
        "%s does not say its action mode: taken as %s; open or convert it with action_mode=%s if it is not",
        folder,
        DELTA,
        ABSOLUTE,
    )
    return DELTA


def _as_told(spec: PolicySpec, files: ReleasedFiles) -> ReleasedFiles:
    """The authors' files, with what the spec says otherwise."""
    if spec.sampler.solver != "euler":
        raise ConfigError(
            f"the authors' layout knows the Euler solver alone, the policy samples with {spec.sampler.solver!r}; save "
            "it in our layout, or with sampler.solver=euler."
        )
    told: dict[str, Any] = {
        "num_inference_steps": spec.sampler.num_steps,
        "n_action_steps": spec.sampler.n_action_steps,
    }
    if spec.dtype != "mixed":
        told["dtype"] = spec.dtype
    files = replace(files, config={**files.config, **told})
    modes = {robot.action_mode for robot in spec.robots}
    if len(modes) > 1:
        raise ConfigError(
            "the authors' layout holds robots of one action mode, the policy has abs and delta."
        )
    assumed = files.action_mode or DELTA
    for mode in modes - {assumed}:
        files = replace(files, training=files.with_action_mode(mode))
    return files


def _robots(spec: PolicySpec, action_mode: str, extra: Sequence[Path]) -> Iterable[Robot]:
    """The robots whose embodiment is known and fits the model; each of the others is named in the log."""
    seen: dict[str, str] = {}
    assert spec.released is not None, "a spec that was read from the authors' layout"
    for name, features in (spec.released.statistics or {}).items():
        embodiment = find_embodiment(name, extra)
        if embodiment is None:
            log.warning(
                "statistics of %r are kept, but no embodiment of that name is known: describe the robot in a YAML "
                "file like those of conf/embodiment/, and open with embodiments=[file]",
                name,
            )
        elif embodiment.name in seen:
            log.warning(
                "statistics of %r are kept, but %r means the same robot %r, and its statistics are used",
                name,
                seen[embodiment.name],
                embodiment.name,
            )
        elif absent := lacking(embodiment, features):
            log.warning("statistics of %r are kept, but lack %s", name, ", ".join(absent))
        else:
            numbers = released_statistics(embodiment, features, action_mode, spec.model.chunk_size)
            robot = Robot(embodiment, numbers)
            try:
                require_fit(robot, spec.model)
            except ConfigError as error:
                log.warning("statistics of %r are kept, but the model cannot drive it: %s", name, error)
                continue
            seen[embodiment.name] = name
            yield robot
