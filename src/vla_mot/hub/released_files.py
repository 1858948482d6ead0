"""What the authors' layout says beside its weights, kept word for word: their JSON files, and the constants they store.

In our layout these lie as `released_*`, so that a converted checkpoint can be converted back.
"""

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from vla_mot.errors import CheckpointError, nearest
from vla_mot.hub.files import read_json, write_json
from vla_mot.hub.tensors import Weights, write_tensors
from vla_mot.robots.actions import ABSOLUTE, DELTA

CONFIG_FILE, STATISTICS_FILE, TRAINING_FILE = "config.json", "stats.json", "train_config.json"
_KEPT_AS = "released_"
_CONSTANTS = "released_constants.safetensors"
_MODE = "action_mode"


@dataclass(frozen=True)
class ReleasedFiles:
    """What a checkpoint in the authors' layout holds beside weights that ours knows; see `vla_mot.hub.released`.

    config, statistics, training: the content of `config.json`, `stats.json` and `train_config.json`. metadata: of the
    safetensors header. constants: tensors that they store and our code computes. texts: file name → what was read,
    which is written again as long as the content is the same.
    """

    config: Mapping[str, Any]
    statistics: Mapping[str, Any] | None
    metadata: Mapping[str, str]
    constants: Mapping[str, Tensor]
    training: Mapping[str, Any] | None = None
    texts: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def read(
        cls, folder: Path, metadata: Mapping[str, str], constants: Mapping[str, Tensor], prefix: str = ""
    ) -> "ReleasedFiles":
        """Read the JSON files of a folder. Raises CheckpointError for a damaged one, or without a `config.json`."""
        held = [n for n in (STATISTICS_FILE, TRAINING_FILE) if (folder / f"{prefix}{n}").is_file()]
        told = {name: read_json(folder / f"{prefix}{name}") for name in (CONFIG_FILE, *held)}
        return cls(
            config=told[CONFIG_FILE],
            statistics=told.get(STATISTICS_FILE),
            metadata=metadata,
            constants=constants,
            training=told.get(TRAINING_FILE),
            texts={name: (folder / f"{prefix}{name}").read_bytes().decode() for name in told},
        )

    def write(self, folder: Path, prefix: str = "") -> None:
        """Write the JSON files."""
        contents = {
            CONFIG_FILE: self.config,
            STATISTICS_FILE: self.statistics,
            TRAINING_FILE: self.training,
        }
        for name, content in contents.items():
            if content is None:
                continue
            path, text = folder / f"{prefix}{name}", self.texts.get(name)
            if text is None or json.loads(text) != content:
                write_json(path, content)
                continue
            with path.open("wb") as file:
                file.write(text.encode())
                file.flush()
                os.fsync(file.fileno())

    @property
    def action_mode(self) -> str | None:
        """What `train_config.json` says that the statistics are of; None when it says nothing.

        Raises CheckpointError for a mode that nobody knows: a robot must not guess.
        """
        said = _find(self.training, _MODE)
        if said is None or said in (ABSOLUTE, DELTA):
            return None if said is None else str(said)
        raise CheckpointError(
            f"{TRAINING_FILE} says {_MODE} {said!r}; expected {ABSOLUTE!r} or {DELTA!r}."
            f"{nearest(str(said), (ABSOLUTE, DELTA))} If you know what the statistics are of, say {_MODE}=… when you "
            "open or convert the checkpoint."
        )

    def with_action_mode(self, mode: str) -> dict[str, Any]:
        """The content of `train_config.json` once it says this mode, where it said another one or none."""
        training = dict(self.training or {})
        if _find(training, _MODE) is not None:
            return dict(_replaced(training, _MODE, mode))
        place = training.get("dataset", {})
        return training | (
            {"dataset": {**place, _MODE: mode}} if isinstance(place, Mapping) else {_MODE: mode}
        )


def write_kept(folder: Path, files: ReleasedFiles) -> None:
    """Write them into a folder of our layout."""
    files.write(folder, _KEPT_AS)
    write_tensors(folder / _CONSTANTS, files.constants, files.metadata)


def read_kept(folder: Path) -> ReleasedFiles | None:
    """Read them from a folder of our layout; None when it was not converted from the authors'."""
    if not (folder / f"{_KEPT_AS}{CONFIG_FILE}").is_file():
        return None
    constants = Weights.open(folder / _CONSTANTS)
    return ReleasedFiles.read(folder, constants.metadata(), constants.read(), _KEPT_AS)


def _inside(tree: Any) -> list[Any]:
    if isinstance(tree, Mapping):
        return list(tree.values())
    return list(tree) if isinstance(tree, list | tuple) else []


def _find(tree: Any, key: str) -> Any:
    """The first value under `key`, however deep, lists included; null counts as nothing."""
    if isinstance(tree, Mapping) and tree.get(key) is not None:
        return tree[key]
    return next((found for value in _inside(tree) if (found := _find(value, key)) is not None), None)


def _replaced(tree: Any, key: str, value: Any) -> Any:
    """The same tree with every value under `key` replaced."""
    if isinstance(tree, Mapping):
        return {k: value if k == key else _replaced(v, key, value) for k, v in tree.items()}
    return [_replaced(item, key, value) for item in tree] if isinstance(tree, list | tuple) else tree
