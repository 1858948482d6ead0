"""Checkpoints of a run, in LeRobot's layout.

    <run>/checkpoints/000500/pretrained_model/   the policy (averaged weights): `vla_mot.hub.native`
    <run>/checkpoints/000500/training_state/     what `resume` needs to continue bit by bit
    <run>/checkpoints/last                       a link to the newest

A checkpoint is written under a temporary name, flushed and renamed, so that a folder with a number is whole.
"""

import os
import re
import shutil
from dataclasses import dataclass
from pathlib import Path

from torch import nn

from vla_mot.errors import CheckpointError
from vla_mot.hub.native import (
    PolicySpec,
    load_weights,
    read_json,
    read_tensors,
    save_policy,
    write_json,
    write_tensors,
)
from vla_mot.train.optimizer import AveragedWeights, Optimizers

POLICY_FOLDER, STATE_FOLDER, LAST = "pretrained_model", "training_state", "last"


@dataclass(frozen=True)
class Progress:
    """Where a run stands: optimizer steps done, seconds of training spent."""

    step: int
    seconds: float


def save_checkpoint(
    run: Path,
    progress: Progress,
    spec: PolicySpec,
    model: nn.Module,
    average: AveragedWeights,
    optimizers: Optimizers,
    keep: int,
) -> Path:
    """Write `checkpoints/<step>`, point `last` to it, remove all but the newest `keep`. Returns the folder."""
    root = run / "checkpoints"
    final, unfinished = root / f"{progress.step:06d}", root / f".unfinished-{progress.step:06d}"
    shutil.rmtree(unfinished, ignore_errors=True)
    save_policy(unfinished / POLICY_FOLDER, spec, average.state)
    state = unfinished / STATE_FOLDER
    state.mkdir()
    write_tensors(state / "model.safetensors", model.state_dict())
    write_tensors(state / "optimizer.safetensors", optimizers.tensors())
    write_json(
        state / "progress.json",
        {"step": progress.step, "seconds": progress.seconds, "average_updates": average.updates},
    )
    shutil.rmtree(final, ignore_errors=True)
    os.replace(unfinished, final)
    _point_last(root, final.name)
    for old in _numbered(root)[:-keep]:
        shutil.rmtree(old)
    return final


def find_checkpoint(path: Path) -> Path:
    """Return the newest checkpoint of a run, or `path` itself when it is one. Raises CheckpointError."""
    if (path / STATE_FOLDER).is_dir():
        return path
    found = _numbered(path / "checkpoints")
    if not found:
        raise CheckpointError(f"{path} holds no checkpoint to resume from: no {path / 'checkpoints'}/<step>.")
    return found[-1]


def load_checkpoint(
    folder: Path, model: nn.Module, average: AveragedWeights, optimizers: Optimizers
) -> Progress:
    """Restore weights, averaged weights and optimizer. Raises CheckpointError when anything does not fit."""
    state = folder / STATE_FOLDER
    progress = read_json(state / "progress.json")
    for name in ("step", "seconds", "average_updates"):
        if name not in progress:
            raise CheckpointError(f"{state / 'progress.json'} lacks {name!r}.")
    load_weights(model, state / "model.safetensors")
    policy = folder / POLICY_FOLDER / "model.safetensors"
    averaged = read_tensors(policy)
    if averaged.keys() != average.state.keys():
        raise CheckpointError(f"{policy} has other weights than the model of this run.")
    average.load(averaged, int(progress["average_updates"]))
    optimizers.load(read_tensors(state / "optimizer.safetensors"))
    return Progress(int(progress["step"]), float(progress["seconds"]))


def _numbered(root: Path) -> list[Path]:
    if not root.is_dir():
        return []
    return sorted(path for path in root.iterdir() if re.fullmatch(r"\d{6,}", path.name))


def _point_last(root: Path, name: str) -> None:
    link = root / f".{LAST}"
    link.unlink(missing_ok=True)
    link.symlink_to(name)
    os.replace(link, root / LAST)
