"""The JSON files of a checkpoint, read with suspicion and flushed to disk."""

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vla_mot.errors import CheckpointError


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object. Raises CheckpointError when it is missing, damaged or something else."""
    if not path.is_file():
        raise CheckpointError(f"{path} is missing; {path.parent} is no complete checkpoint.")
    try:
        content = json.loads(path.read_text())
    except (
        ValueError,
        RecursionError,
    ) as error:  # bad JSON or UTF-8, numbers of thousands of digits, endless nesting
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


def sha256(path: Path) -> str:
    """The SHA-256 of a file's content, as hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
