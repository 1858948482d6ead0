"""Checkpoints of a run, in LeRobot's layout.

    <run>/checkpoints/000500/pretrained_model/   the policy (averaged weights): `vla_mot.hub.native`
    <run>/checkpoints/000500/training_state/     what `resume` needs to continue bit by bit
    <run>/checkpoints/last                       a link to the newest

A checkpoint is written under a temporary name, flushed and renamed, so that a folder with a number is whole.
"""

import os
import re
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from vla_mot.errors import CheckpointError
from vla_mot.hub.files import read_json, write_json
from vla_mot.hub.native import save_policy
from vla_mot.hub.spec import PolicySpec
from vla_mot.hub.tensors import Weights, load_weights, write_tensors
from vla_mot.infer.golden import record_golden
from vla_mot.infer.policy import Policy
from vla_mot.model.model import VlaMotModel
from vla_mot.train.optimizer import AveragedWeights, Optimizers

POLICY_FOLDER, STATE_FOLDER, LAST = "pretrained_model", "training_state", "last"


@dataclass(frozen=True)
class Progress:
    """Where a run stands: optimizer steps done, seconds of training spent, samples learned of each kind."""

    step: int
    seconds: float
    samples: Mapping[str, int] = field(default_factory=dict)


def save_checkpoint(
    run: Path,
    progress: Progress,
    spec: PolicySpec,
    model: VlaMotModel,
    average: AveragedWeights,
    optimizers: Optimizers,
    keep: int,
    training: Mapping[str, Any] | None = None,
) -> Path:
    """Write `checkpoints/<step>`, point `last` to it, remove all but the newest `keep`. Returns the folder.

    training: the run's resolved configuration, which travels with the policy.
    """
    root = run / "checkpoints"
    final, unfinished = root / f"{progress.step:06d}", root / f".unfinished-{progress.step:06d}"
    shutil.rmtree(unfinished, ignore_errors=True)
    try:
        golden = record_golden(_averaged_policy(spec, model, average))
        save_policy(unfinished / POLICY_FOLDER, spec, average.state, golden=golden, training=training)
        _save_state(unfinished / STATE_FOLDER, progress, model, average, optimizers)
    except BaseException:  # a full disk is not to be filled with what nobody can use
        shutil.rmtree(unfinished, ignore_errors=True)
        raise
    shutil.rmtree(final, ignore_errors=True)
    os.replace(unfinished, final)
    _point_last(root, final.name)
    for old in _numbered(root)[:-keep]:
        shutil.rmtree(old)
    return final


def _save_state(
    folder: Path, progress: Progress, model: nn.Module, average: AveragedWeights, optimizers: Optimizers
) -> None:
    folder.mkdir()
    write_tensors(folder / "model.safetensors", model.state_dict())
    write_tensors(folder / "optimizer.safetensors", optimizers.tensors())
    write_json(
        folder / "progress.json",
        asdict(progress) | {"average_updates": average.updates},
    )


def _averaged_policy(spec: PolicySpec, model: VlaMotModel, average: AveragedWeights) -> Policy:
    """A policy around the averaged weights themselves: no copy is made."""
    with torch.device("meta"):
        shell = VlaMotModel(spec.model)
    shell.load_state_dict(average.state, strict=True, assign=True)
    return Policy(shell.reset_buffers(next(model.parameters()).device), spec)


def find_checkpoint(path: Path) -> Path:
    """Return the newest checkpoint of a run, or `path` itself when it is one. Raises CheckpointError."""
    if (path / STATE_FOLDER).is_dir():
        return path
    found = newest_checkpoint(path)
    if found is None:
        raise CheckpointError(f"{path} holds no checkpoint to resume from: no {path / 'checkpoints'}/<step>.")
    return found


def newest_checkpoint(run: Path) -> Path | None:
    """Return the newest checkpoint of a run, or None when it has none."""
    found = _numbered(run / "checkpoints")
    return found[-1] if found else None


def load_checkpoint(
    folder: Path, model: nn.Module, average: AveragedWeights, optimizers: Optimizers
) -> Progress:
    """Restore weights, averaged weights and optimizer. Raises CheckpointError when anything does not fit."""
    state = folder / STATE_FOLDER
    progress = read_json(state / "progress.json")
    for name in ("step", "seconds", "average_updates"):
        if name not in progress:
            raise CheckpointError(f"{state / 'progress.json'} lacks {name!r}.")
    load_weights(model, Weights.open(state / "model.safetensors"))
    policy = Weights.open(folder / POLICY_FOLDER)
    if policy.infos.keys() != average.state.keys():
        raise CheckpointError(f"{policy.source} has other weights than the model of this run.")
    average.load(policy.read(), int(progress["average_updates"]))
    optimizers.load(Weights.open(state / "optimizer.safetensors").read())
    return Progress(int(progress["step"]), float(progress["seconds"]), dict(progress.get("samples", {})))


def _numbered(root: Path) -> list[Path]:
    if not root.is_dir():
        return []
    found = (path for path in root.iterdir() if re.fullmatch(r"\d{6,}", path.name))
    return sorted(found, key=lambda path: int(path.name))


def _point_last(root: Path, name: str) -> None:
    link = root / f".{LAST}"
    link.unlink(missing_ok=True)
    link.symlink_to(name)
    os.replace(link, root / LAST)
