"""Where things lie: output folders that must be new, and the policy inside a run."""

import json
import os
import shutil
import uuid
from collections.abc import Container, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml

from vla_mot.errors import CheckpointError, ConfigError, nearest
from vla_mot.options import fit

CONFIG_NAME = "config.yaml"
EXPERIMENT = "experiment.json"  # in the folder of a tool that goes on where it was
LAUNCH = "launch"  # in a run's folder: what started its ranks, and what they print
UNFINISHED = ".{}.unfinished"  # what is written before it is renamed
_POLICY = ("", "pretrained_model", "checkpoints/last/pretrained_model", "policy")


def require_unused(folder: Path, hint: str = "", *, besides: Container[str] = ()) -> None:
    """Raise ConfigError unless `folder` is absent or empty, and has a name that another one can stand in for.

    besides: names of what may be in it all the same.
    """
    if not folder.name:
        raise ConfigError(
            f"output={folder} has no name; give a folder of its own, for example output=outputs/new."
        )
    above = next(parent for parent in (folder, *folder.absolute().parents) if parent.exists())
    if above.is_dir() and not os.access(above, os.W_OK):
        raise ConfigError(
            f"output {folder} cannot be made: {above} may not be written. Choose another output=…."
        )
    if folder.is_file():
        raise ConfigError(f"output {folder} is a file; a folder is needed.")
    if folder.is_dir() and (
        held := sorted(path.name for path in folder.iterdir() if path.name not in besides)
    ):
        shown = ", ".join(held[:4]) + (", …" if len(held) > 4 else "")
        raise ConfigError(
            f"output folder {folder} is already used (it holds {shown}). Choose another output=…, or remove it.{hint}"
        )


def require_same(folder: Path, facts: dict[str, Any]) -> None:
    """Raise ConfigError where `folder` holds an experiment of other facts; else note these in its `experiment.json`.

    What was not noted before may be anything.
    """
    path = folder / EXPERIMENT
    noted = read_facts(path) or {}
    if other := [
        f"{key} was {noted[key]}, is {value}"
        for key, value in facts.items()
        if noted.get(key, value) != value
    ]:
        raise ConfigError(f"{folder} holds another experiment: {'; '.join(other)}. Choose another folder.")
    if noted | facts != noted:
        write_facts(path, noted | facts)


@contextmanager
def whole(folder: Path) -> Iterator[Path]:
    """Give a temporary folder that becomes `folder` when the block ends well, and is removed otherwise."""
    unfinished = folder.with_name(f".{folder.name}.{uuid.uuid4().hex[:8]}")
    unfinished.mkdir(parents=True)
    try:
        with nothing_kept(folder):
            yield unfinished
        if folder.is_dir():
            folder.rmdir()
        unfinished.rename(folder)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


@contextmanager
def nothing_kept(folder: Path) -> Iterator[None]:
    """Say so when the block, which leaves nothing unfinished behind, is interrupted."""
    try:
        yield
    except KeyboardInterrupt:
        raise KeyboardInterrupt(f"Nothing was written to {folder}; the same command starts again.") from None


def find_policy(path: Path) -> Path:
    """Return the policy's folder of a policy, a checkpoint, a run or a demo. Raises CheckpointError."""
    for inside in _POLICY:
        if (path / inside / "config.json").is_file():
            return path / inside
    if not path.exists():
        siblings = [entry.name for entry in path.parent.iterdir()] if path.parent.is_dir() else []
        raise CheckpointError(f"checkpoint {path} does not exist.{nearest(path.name, siblings)}")
    held = ", ".join(sorted(entry.name for entry in path.iterdir())[:6]) if path.is_dir() else "a file"
    raise CheckpointError(
        f"{path} holds no policy: expected config.json in it, in pretrained_model/ or in "
        f"checkpoints/last/pretrained_model/; found {held or 'nothing'}."
    )


def run_of(policy: Path) -> Path | None:
    """The run's folder of a policy that lies in `<run>/checkpoints/<step>/pretrained_model`, or None elsewhere."""
    place = policy.resolve()
    inside = place.name == "pretrained_model" and place.parent.parent.name == "checkpoints"
    return place.parents[2] if inside else None


def split_of(policy: Path) -> tuple[float, int] | None:
    """Share of the episodes that the run of a policy held out, and the seed of the split; None where it lies in no run.

    Raises ConfigError where the run's configuration holds something else.
    """
    run = run_of(policy)
    try:
        data = read_config(run)["data"] if run else {}
        fraction, seed = data["validation_fraction"], data["split_seed"]
    except (CheckpointError, KeyError, TypeError):
        return None
    return fit(float, "data.validation_fraction", fraction), fit(int, "data.split_seed", seed)


def write_config(folder: Path, config: dict[str, Any]) -> None:
    """Write `config.yaml`: the resolved configuration of a run."""
    folder.mkdir(parents=True, exist_ok=True)
    write_atomic(folder / CONFIG_NAME, yaml.safe_dump(config, sort_keys=False, allow_unicode=True))


def read_config(folder: Path) -> dict[str, Any]:
    """Read the `config.yaml` of a run. Raises CheckpointError when there is none, or it is damaged."""
    path = folder / CONFIG_NAME
    if not path.is_file():
        raise CheckpointError(f"{folder} is no run to resume: it has no {CONFIG_NAME}.")
    try:
        config = yaml.safe_load(path.read_text())
    except yaml.YAMLError as error:
        raise CheckpointError(f"{path} is damaged: {error}") from error
    if not isinstance(config, dict):
        raise CheckpointError(f"{path} is damaged: expected a mapping, got {type(config).__name__}.")
    return config


def write_facts(path: Path, facts: dict[str, Any]) -> None:
    """Write a small JSON file, whole or not at all."""
    write_atomic(path, json.dumps(facts, indent=2, ensure_ascii=False) + "\n")


def read_facts(path: Path) -> dict[str, Any] | None:
    """Read what `write_facts` wrote; None when it is missing or damaged."""
    try:
        facts = json.loads(path.read_text())
    except (OSError, ValueError):
        return None
    return facts if isinstance(facts, dict) else None


def write_atomic(path: Path, text: str) -> None:
    """Write under another name, then rename."""
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(UNFINISHED.format(path.name))
    unfinished.write_text(text)
    os.replace(unfinished, path)
