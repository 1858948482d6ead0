"""Pickled weights, for whoever insists: rewritten as safetensors, from which everything else is read as usual.

A pickle can name any function to be called. torch's `weights_only` unpickler knows tensors and plain containers only,
and refuses the rest; that is all that stands between the file and the machine, so it is asked for by name.
"""

import pickle
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vla_mot.errors import CheckpointError
from vla_mot.hub.remote import FILES, TOKENIZER
from vla_mot.hub.tensors import INDEX_FILE, WEIGHTS_FILE, write_tensors

PICKLE = "pytorch_model.bin"


def is_pickled(folder: Path) -> bool:
    """Whether a folder holds its weights as `pytorch_model.bin` and in no other way."""
    others = any((folder / name).is_file() for name in (WEIGHTS_FILE, INDEX_FILE))
    return (folder / PICKLE).is_file() and not others


def unpickle(folder: Path, into: Path) -> None:
    """Write a folder's `pytorch_model.bin` as safetensors into another folder, and what else belongs to a policy.

    A tensor that stands there under several names is kept once, under the first one in the alphabet, as safetensors
    does. Raises CheckpointError when the pickle holds anything but tensors by name.
    """
    try:
        content = torch.load(folder / PICKLE, map_location="cpu", weights_only=True, mmap=True)
    except (pickle.UnpicklingError, RuntimeError, ValueError, EOFError, OSError, KeyError) as error:
        reason = (str(error).strip().splitlines() or ["no message"])[0]
        raise CheckpointError(
            f"{folder / PICKLE} holds more than tensors, or is damaged ({type(error).__name__}: {reason}); it is not "
            "opened. Ask for safetensors."
        ) from error
    if not _tensors_by_name(content):
        raise CheckpointError(f"{folder / PICKLE} holds no tensors by name; expected a state_dict.")
    kept: dict[Any, str] = {}
    for name in sorted(content):
        tensor = content[name]
        kept.setdefault(
            (tensor.data_ptr(), tensor.shape, tensor.stride(), tensor.dtype, name * (not tensor.numel())),
            name,
        )
    for file in (file for pattern in FILES for file in folder.glob(pattern)):
        shutil.copyfile(file, into / file.name)
    if (folder / TOKENIZER).is_dir():
        shutil.copytree(folder / TOKENIZER, into / TOKENIZER)
    write_tensors(into / WEIGHTS_FILE, {name: content[name].clone() for name in kept.values()})


def _tensors_by_name(content: Any) -> bool:
    return isinstance(content, Mapping) and all(
        isinstance(name, str) and isinstance(tensor, Tensor) for name, tensor in content.items()
    )
