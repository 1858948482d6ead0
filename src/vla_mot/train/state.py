"""The state that training continues from, as tensors: written by all ranks together, read by any number of them.

    model.<weight>                  the weights
    average.<weight>                the moving average of those that train, where there is one
    optimizer.<weight>/<quantity>   what the optimizer keeps of each

torch's distributed checkpoints do the work (each rank writes what it holds, a reader takes what it needs), in
safetensors files: nothing is pickled, nothing is executed when they are read.
"""

import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from pathlib import Path

import torch
import torch.distributed.checkpoint as dcp
from torch import Tensor, nn
from torch.distributed.checkpoint import (
    CheckpointException,
    HuggingFaceStorageReader,
    HuggingFaceStorageWriter,
)
from torch.distributed.checkpoint.metadata import TensorStorageMetadata
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor

from vla_mot.errors import CheckpointError
from vla_mot.train.average import AveragedWeights
from vla_mot.train.optimizer import Optimizers
from vla_mot.train.world import World, kept_mesh


def state_of(model: nn.Module, average: AveragedWeights, optimizers: Optimizers) -> dict[str, Tensor]:
    """All tensors of a run; each rank's part of what is sharded. They share memory with the run's own."""
    parts: dict[str, Mapping[str, Tensor]] = {"model": model.state_dict(), "optimizer": optimizers.tensors()}
    if average.decay:
        parts["average"] = average.own
    return {f"{part}.{name}": tensor for part, tensors in parts.items() for name, tensor in tensors.items()}


def write_state(folder: Path, tensors: Mapping[str, Tensor], world: World) -> None:
    """Write them into a folder; all ranks must call it. Raises what a rank's disk objected with."""
    writer = HuggingFaceStorageWriter(str(folder), save_distributed=True)
    with _plain_errors(), torch.no_grad():
        dcp.save(dict(tensors), storage_writer=writer, process_group=world.group)


def read_state(
    folder: Path, model: nn.Module, average: AveragedWeights, optimizers: Optimizers, world: World
) -> None:
    """Put what lies in a folder into a run, whatever number of ranks wrote it; all ranks must call it.

    Raises CheckpointError when it is the state of another model, or when a file is damaged.
    """
    with _readable(folder):
        reader = HuggingFaceStorageReader(str(folder))
        stored = reader.read_metadata().state_dict_metadata
    wanted = state_of(model, average, optimizers)
    own = {name: tensor for name, tensor in wanted.items() if not name.startswith(_OPTIMIZER)}
    found = {name for name in stored if not name.startswith(_OPTIMIZER)}
    # Earlier runs averaged what does not train as well.
    spare = {f"average.{name}" for name in model.state_dict()} if average.decay else set()
    if odd := sorted((own.keys() - found) | (found - own.keys() - spare)):
        raise CheckpointError(f"{folder} holds other weights than this run trains: {', '.join(odd[:5])}, ….")
    kept = _like(stored, dict(model.named_parameters()))
    for name, tensor in own.items():
        _require_shape(folder, name, stored[name], tensor)
    with _readable(folder), torch.no_grad():
        dcp.load({**own, **kept}, storage_reader=reader, process_group=world.group)
    optimizers.load({name.removeprefix(_OPTIMIZER): tensor for name, tensor in kept.items()})


_OPTIMIZER = "optimizer."


def _like(stored: Mapping[str, object], weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Empty tensors for the optimizer's state: sharded as their weights where they have their shape."""
    made: dict[str, Tensor] = {}
    for name, told in stored.items():
        if not name.startswith(_OPTIMIZER):
            continue
        weight = weights.get(name.removeprefix(_OPTIMIZER).rpartition("/")[0])
        if weight is None or not isinstance(told, TensorStorageMetadata):
            raise CheckpointError(f"the optimizer's state holds {name!r}, which is of no weight of this run.")
        dtype = told.properties.dtype
        if told.size == weight.shape:
            made[name] = torch.empty_like(weight, dtype=dtype, requires_grad=False)
        else:
            made[name] = torch.empty(told.size, dtype=dtype)
    return made


def _require_shape(folder: Path, name: str, told: object, tensor: Tensor) -> None:
    shape = told.size if isinstance(told, TensorStorageMetadata) else None
    if shape != tensor.shape:
        raise CheckpointError(f"{folder}: {name} has shape {shape}, this run's has {tuple(tensor.shape)}.")


@contextmanager
def _plain_errors() -> Iterator[None]:
    """The error that a rank met, instead of torch's bundle of all ranks' errors."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="torch.distributed is disabled")  # one process is enough
        try:
            yield
        except CheckpointException as bundle:
            errors = [error for error, _ in bundle.failures.values()]
            raise next((e for e in errors if isinstance(e, OSError)), errors[0]) from None


@contextmanager
def _readable(folder: Path) -> Iterator[None]:
    try:
        with _plain_errors():
            yield
    except (CheckpointError, OSError):
        raise
    except Exception as error:  # whatever a damaged file makes of a reader
        raise CheckpointError(f"{folder} cannot be read ({' '.join(str(error).split())}).") from error


def copied(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The same numbers in tensors of their own, in host memory; what is sharded stays so."""
    return {name: _copied(tensor.detach()) for name, tensor in tensors.items()}


def _copied(tensor: Tensor) -> Tensor:
    if not isinstance(tensor, DTensor):
        return tensor.to("cpu", copy=True)
    mesh = _in_host_memory(tensor.device_mesh)
    part = tensor.to_local().to("cpu", copy=True)
    return DTensor.from_local(
        part, mesh, tensor.placements, run_check=False, shape=tensor.shape, stride=tensor.stride()
    )


@cache
def _in_host_memory(mesh: DeviceMesh) -> DeviceMesh:
    """The same ranks in the same order: a shard in host memory must say so of its mesh."""
    if mesh.device_type == "cpu":
        return mesh
    return kept_mesh("cpu", tuple(mesh.shape), mesh.mesh_dim_names)
