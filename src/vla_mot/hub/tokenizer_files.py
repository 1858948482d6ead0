"""A tokenizer that came from a folder travels inside the checkpoint, so that this opens anywhere.

<checkpoint>/tokenizer/     the tokenizer's own files; `config.json` then says `tokenizer: ./tokenizer`
"""

import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vla_mot.backbones.tokenizers import folder_tokenizer, tokenizer_folder
from vla_mot.errors import CheckpointError, ConfigError
from vla_mot.hub.remote import TOKENIZER as FOLDER

INSIDE = f"./{FOLDER}"
_FILES = (
    "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "vocab.json",
    "merges.txt", "vocab.txt", "tokenizer.model", "spiece.model", "qwen.tiktoken",
)  # fmt: skip


def portable(model: Mapping[str, Any]) -> dict[str, Any]:
    """Options of a model as they are written down: a tokenizer's folder is the one inside the checkpoint."""
    return _with_tokenizer(model, INSIDE) if _folder(model) else dict(model)


def placed(folder: Path, model: Mapping[str, Any]) -> dict[str, Any]:
    """Options of a model that were read from a checkpoint's folder: the tokenizer's place is that folder's."""
    inside = _name(model) == INSIDE
    return _with_tokenizer(model, str((folder / FOLDER).absolute())) if inside else dict(model)


def save_tokenizer(folder: Path, model: Mapping[str, Any]) -> None:
    """Copy the tokenizer's files into a checkpoint's folder, where it has some. model: options, as they are in memory.

    Raises ConfigError when they are gone, CheckpointError when the copy does not open.
    """
    source, target = _folder(model), folder / FOLDER
    if source is None or (target.is_dir() and os.path.samefile(source, target)):
        return
    held = [source / name for name in _FILES if (source / name).is_file()]
    if not held:
        raise ConfigError(
            f"backbone.tokenizer: {source} holds no tokenizer (tokenizer.json, …) any more, so that it cannot be saved "
            "with the policy."
        )
    if not (source / "tokenizer_config.json").is_file() and (source / "config.json").is_file():
        held.append(source / "config.json")  # which then names the tokenizer's class
    target.mkdir(exist_ok=True)
    for file in held:
        shutil.copyfile(file, target / file.name)
    try:
        folder_tokenizer(target)
    except ConfigError as error:
        raise CheckpointError(
            f"the tokenizer of {source} does not open without the other files there ({error}); save it by itself "
            "(AutoTokenizer's save_pretrained) and name that folder."
        ) from error


def _name(model: Mapping[str, Any]) -> Any:
    backbone = model.get("backbone")
    return backbone.get("tokenizer") if isinstance(backbone, Mapping) else None


def _folder(model: Mapping[str, Any]) -> Path | None:
    name = _name(model)
    return tokenizer_folder(name) if isinstance(name, str) else None


def _with_tokenizer(model: Mapping[str, Any], name: str) -> dict[str, Any]:
    return {**model, "backbone": {**model["backbone"], "tokenizer": name}}
