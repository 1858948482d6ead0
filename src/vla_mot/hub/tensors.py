"""Safetensors files, one or several: read strictly and tensor by tensor, written whole.

A set of weights is `model.safetensors`, or shards beside a `model.safetensors.index.json` (Hugging Face's layout).
Only headers are read until a tensor is asked for, so that a check costs nothing and loading holds one tensor more
than the model.
"""

import os
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import split_torch_state_dict_into_shards
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from vla_mot.errors import CheckpointError
from vla_mot.hub.files import read_json, write_json

WEIGHTS_FILE, INDEX_FILE = "model.safetensors", "model.safetensors.index.json"
SHARDS = "model-*-of-*.safetensors"
MAX_SHARD_BYTES = 5 * 10**9  # the size at which Hugging Face's libraries begin a new file
Rename = Callable[[str], str | None]
"""Name in a file → name in the model, or None for a tensor that is left out."""
_PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
_DTYPES = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2,
    "I64": torch.int64, "I32": torch.int32, "I16": torch.int16, "I8": torch.int8, "U8": torch.uint8, "BOOL": torch.bool,
}  # fmt: skip


def same_name(name: str) -> str:
    """The identity: names in the file are the model's."""
    return name


@dataclass(frozen=True)
class TensorInfo:
    """What a file's header says of one tensor, and the file."""

    shape: tuple[int, ...]
    dtype: torch.dtype
    file: Path

    @property
    def bytes(self) -> int:
        """Size of the tensor's numbers."""
        return torch.Size(self.shape).numel() * self.dtype.itemsize


@dataclass(frozen=True)
class Weights:
    """The tensors of one checkpoint, by name, not yet read. source: the file or folder, for messages."""

    source: Path
    infos: Mapping[str, TensorInfo]

    @classmethod
    def open(cls, path: Path) -> "Weights":
        """Read the headers of a safetensors file, or of the weights in a folder.

        Raises CheckpointError when a file is missing, truncated or no safetensors file, when a shard does not hold
        what the index says, when there are both one file and an index, or when the weights are pickled.
        """
        if path.is_file():
            return cls(path, _infos(path))
        if (path / WEIGHTS_FILE).is_file() and (path / INDEX_FILE).is_file():
            raise CheckpointError(ambiguous(path))
        if (path / WEIGHTS_FILE).is_file():
            return cls(path / WEIGHTS_FILE, _infos(path / WEIGHTS_FILE))
        if (path / INDEX_FILE).is_file():
            return cls(path / INDEX_FILE, _sharded_infos(path / INDEX_FILE))
        pickles = sorted(p.name for p in path.glob("*") if p.suffix in _PICKLES) if path.is_dir() else []
        if pickles:
            raise CheckpointError(
                f"{path} holds its weights only as pickles ({', '.join(pickles)}), which run code when they are "
                "opened. Ask for safetensors; or, if you trust whoever made them, `vla-mot convert allow_pickle=true`."
            )
        missing = path if path.suffix == ".safetensors" and not path.is_dir() else path / WEIGHTS_FILE
        raise CheckpointError(f"{missing} is missing; a checkpoint needs it.")

    def stream(self, names: Sequence[str] | None = None) -> Iterator[tuple[str, Tensor]]:
        """Yield (name, tensor) one at a time, file by file. Raises CheckpointError when a file is damaged."""
        wanted = list(self.infos) if names is None else list(names)
        for file in dict.fromkeys(self.infos[name].file for name in wanted):
            with _opened(file) as handle:
                for name in wanted:
                    if self.infos[name].file == file:
                        yield name, handle.get_tensor(name)

    def read(self) -> dict[str, Tensor]:
        """Read every tensor."""
        return dict(self.stream())

    def metadata(self) -> dict[str, str]:
        """The free text in the files' headers."""
        merged: dict[str, str] = {}
        for file in dict.fromkeys(info.file for info in self.infos.values()):
            with _opened(file) as handle:
                merged |= handle.metadata() or {}
        return merged

    @property
    def bytes(self) -> int:
        """Size of all numbers."""
        return sum(info.bytes for info in self.infos.values())


def load_weights(
    model: nn.Module,
    weights: Weights,
    *,
    rename: Rename = same_name,
    stored: Mapping[str, torch.dtype] | None = None,
    as_stored: bool = False,
    names: Collection[str] | None = None,
    device: torch.device | str = "cpu",
) -> None:
    """Load weights into a model, all of them or nothing.

    Tensors of the model that are on the meta device are made on `device`, one at a time; others are written in place.

    rename: name in the file → name in the model, or None for a tensor that is to be left out.
    stored: name in the model → dtype that the file must hold; by default the model's own. Tensors become the model's
        dtype.
    as_stored: tensors of the meta device keep the file's floating dtype, whichever it is where `stored` does not say.
    names: load these tensors of the model; by default all.
    Raises CheckpointError naming every tensor that is missing, unexpected, or of another shape or dtype.
    """
    model_has = model.state_dict()
    expected = model_has if names is None else {name: model_has[name] for name in names}
    target = {source: ours for source in weights.infos if (ours := rename(source)) is not None}
    dtypes = {} if as_stored else {name: tensor.dtype for name, tensor in expected.items()}
    _require_fit(weights, expected, target, dtypes | dict(stored or {}))
    made: dict[str, Tensor] = {}
    for source, tensor in weights.stream(list(target)):
        old = expected[target[source]]
        if old.is_meta:
            dtype = tensor.dtype if as_stored else old.dtype
            made[target[source]] = tensor.to(device=device, dtype=dtype, copy=True)
        else:
            with torch.no_grad():
                old.copy_(tensor)
    if made:
        model.load_state_dict(made, strict=False, assign=True)


def _require_fit(
    weights: Weights,
    expected: Mapping[str, Tensor],
    target: Mapping[str, str],
    dtypes: Mapping[str, torch.dtype],
) -> None:
    """Raise CheckpointError for whatever does not fit; where `dtypes` does not say, any floating dtype does."""
    sources: dict[str, str] = {}
    problems = []
    for source, ours in target.items():
        info = weights.infos[source]
        label = source if source == ours else f"{source} (our {ours})"
        if ours not in expected:
            problems.append(f"unexpected {label} {info.shape}")
            continue
        if ours in sources:
            problems.append(f"{source} and {sources[ours]} both stand for {ours}")
        sources[ours] = source
        shape, dtype = tuple(expected[ours].shape), dtypes.get(ours, info.dtype)
        if shape != info.shape:
            problems.append(f"{label} has shape {info.shape}, the model's is {shape}")
        elif dtype != info.dtype:
            problems.append(f"{label} has dtype {info.dtype}, expected {dtype}")
        elif expected[ours].is_floating_point() != info.dtype.is_floating_point:
            problems.append(f"{label} has dtype {info.dtype}, the model's is {expected[ours].dtype}")
    problems += [f"missing {name} {tuple(expected[name].shape)}" for name in expected if name not in sources]
    if problems:
        raise CheckpointError(f"{weights.source} does not fit the model: {shortened(sorted(problems))}.")


def write_weights(
    folder: Path, tensors: Mapping[str, Tensor], max_shard_bytes: int = MAX_SHARD_BYTES
) -> list[str]:
    """Write `model.safetensors`, or shards and their index when they are larger; returns the files' names."""
    plan = split_torch_state_dict_into_shards(dict(tensors), max_shard_size=max_shard_bytes)
    for file, names in plan.filename_to_tensors.items():
        write_tensors(folder / file, {name: tensors[name] for name in names})
    files = list(plan.filename_to_tensors)
    if plan.is_sharded:
        write_json(folder / INDEX_FILE, {"metadata": plan.metadata, "weight_map": plan.tensor_to_filename})
        files.append(INDEX_FILE)
    return files


def write_tensors(
    path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None
) -> None:
    """Write a safetensors file and flush it to disk. Raises OSError when the disk does not take it."""
    plain = {name: tensor.detach().contiguous() for name, tensor in tensors.items()}
    try:
        save_file(plain, path, metadata=dict(metadata) if metadata else None)
    except SafetensorError as error:  # its own name for a full disk
        raise OSError(f"{path} cannot be written: {error}") from error
    path.chmod(path.parent.stat().st_mode & 0o666)  # safetensors writes for the owner alone
    with path.open("rb") as file:
        os.fsync(file.fileno())


def ambiguous(folder: Path) -> str:
    """The message for a folder that holds weights twice."""
    return (
        f"{folder} holds both {WEIGHTS_FILE} and {INDEX_FILE}: which weights are meant cannot be known. Remove what is "
        "left of an older checkpoint, or save or fetch it into a new folder."
    )


def shortened(problems: Sequence[str], most: int = 12) -> str:
    """The first problems, and how many more there are."""
    more = f"; and {len(problems) - most} more" if len(problems) > most else ""
    return "; ".join(problems[:most]) + more


def _infos(path: Path) -> dict[str, TensorInfo]:
    infos = {}
    with _opened(path) as handle:
        for name in handle.keys():  # noqa: SIM118  (not a dict)
            part = handle.get_slice(name)
            if (kind := part.get_dtype()) not in _DTYPES:
                raise CheckpointError(
                    f"{path}: {name} is of dtype {kind}; expected one of {', '.join(_DTYPES)}."
                )
            infos[name] = TensorInfo(tuple(part.get_shape()), _DTYPES[kind], path)
    return infos


def _sharded_infos(index: Path) -> dict[str, TensorInfo]:
    places = read_json(index).get("weight_map")
    if not isinstance(places, dict) or not all(isinstance(file, str) for file in places.values()):
        raise CheckpointError(f"{index} has no weight_map from tensor names to files.")
    outside = sorted({file for file in places.values() if Path(file).name != file})
    if outside:
        raise CheckpointError(f"{index} points outside its folder: {', '.join(outside)}.")
    found = {file: _infos(index.parent / file) for file in sorted(set(places.values()))}
    told = {(file, name) for name, file in places.items()}
    held = {(file, name) for file, infos in found.items() for name in infos}
    if told != held:
        wrong = sorted(f"{name} in {file}" for file, name in told ^ held)
        raise CheckpointError(
            f"{index} and its shards disagree on {shortened(wrong)}; fetch the checkpoint again."
        )
    return {name: found[file][name] for name, file in places.items()}


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    if not path.is_file():
        raise CheckpointError(f"{path} is missing; a checkpoint needs it.")
    try:
        with safe_open(path, framework="pt") as handle:
            yield handle
    except (SafetensorError, OSError) as error:
        raise CheckpointError(
            f"{path} ({path.stat().st_size} bytes) is truncated or no safetensors file ({error}); "
            "fetch or write it again."
        ) from error
