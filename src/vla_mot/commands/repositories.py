"""Whether a value names a checkpoint on the Hugging Face Hub: what decides if a command may use the network.

Imports nothing heavy, since the libraries read whether the network is forbidden when they are imported.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from vla_mot.commands import folders

_REPOSITORY = re.compile(r"[\w-][\w.-]*/[\w.-]+")  # organisation/name


def is_repository(value: object) -> bool:
    """Whether a value is `org/name` and no folder or file here; what lies here wins."""
    text = str(value)
    return isinstance(value, str | Path) and bool(_REPOSITORY.fullmatch(text)) and not Path(text).exists()


def locate(checkpoint: str | Path) -> str | Path:
    """A repository's id, or the policy's folder of a policy, a checkpoint, a run or a demo.

    Raises CheckpointError when it is neither.
    """
    return str(checkpoint) if is_repository(checkpoint) else folders.find_policy(Path(checkpoint))


def named(keys: Sequence[str], config: Mapping[str, Any], overrides: Sequence[str]) -> list[str]:
    """The repositories that stand under these dotted keys, in the configuration or in any job of a `--multirun`."""
    return [value for value in (*_configured(keys, config), *_swept(keys, overrides)) if is_repository(value)]


def _configured(keys: Sequence[str], config: Mapping[str, Any]) -> Iterator[str]:
    for key in keys:
        value: Any = config
        for part in key.split("."):
            value = value.get(part) if isinstance(value, Mapping) else None
        if isinstance(value, str):
            yield value


def _swept(keys: Sequence[str], overrides: Sequence[str]) -> Iterator[str]:
    for override in overrides:
        key, _, values = override.partition("=")
        if key in keys:
            yield from values.split(",")
