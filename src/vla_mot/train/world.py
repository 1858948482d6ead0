"""The processes that train together, each of them a rank: who this one is, and how it meets the others.

`torchrun` (or a SLURM launcher) starts the ranks and tells them through the environment; alone, a process is rank 0 of
one. Ranks on CPU talk through gloo; on CUDA through NCCL, with gloo beside it for what lies in host memory.
"""

import logging
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.tensor import DTensor

from vla_mot.errors import ConfigError, RankLostError
from vla_mot.groups import keep_to_the_end
from vla_mot.train.peers import losses_explained

logger = logging.getLogger(__name__)

_NEEDED = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")


@dataclass(frozen=True)
class World:
    """This process among those that train together.

    rank: of `size`. local_rank: on its machine. device: on which it computes. group: through which the ranks talk;
        None: torch's default.
    """

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    device: str = "cpu"
    group: dist.ProcessGroup | None = None

    @property
    def is_main(self) -> bool:
        """Whether this rank speaks for all: it prints, logs and writes what there is once."""
        return self.rank == 0

    def beside(self) -> "World":
        """The same ranks on a line of their own, for a thread that talks while the main one does. All must call it."""
        if self.size == 1:
            return self
        group = dist.new_group(backend="gloo")
        keep_to_the_end(group)
        return replace(self, group=group)

    def barrier(self) -> None:
        """Wait for all ranks."""
        if self.size > 1:
            dist.barrier(self.group)

    def one_after_main[T](self, make: Callable[[], T]) -> T:
        """Call `make` on the main rank first, then on all others: what it leaves on disk is made once."""
        if self.is_main:
            made = make()
        self.barrier()
        if not self.is_main:
            made = make()
        return made

    def sum(self, values: Tensor) -> Tensor:
        """Add up over ranks, in place; on any device."""
        if self.size > 1:
            dist.all_reduce(values, group=self.group)
        return values

    def gather[T](self, value: T) -> list[T]:
        """A small picklable value of every rank, in their order, on every rank."""
        if self.size == 1:
            return [value]
        found = [value] * self.size
        dist.all_gather_object(found, value, self.group)
        return found

    def main_only(self, act: Callable[[], None], what: str) -> None:
        """Let the main rank act while the others wait; what it met is raised there, and its failure everywhere.

        what: "could not …", for the others. Without being told they would wait until their patience ends.
        Raises RankLostError on them.
        """
        error: BaseException | None = None
        if self.is_main:
            try:
                act()
            except BaseException as met:
                error = met
        failed = self.gather(error is not None)[0]
        if error is not None:
            raise error
        if failed:
            raise RankLostError(f"rank 0 could not {what}; its own message says why.")


def launched_ranks() -> int:
    """How many ranks were launched together with this process."""
    return _told("WORLD_SIZE", 1)


def launched_rank() -> int:
    """Which of them this process is."""
    return _told("RANK", 0)


def _told(name: str, alone: int) -> int:
    """A number that the launcher tells. Raises ConfigError when it is none."""
    text = os.environ.get(name, str(alone))
    if not text.isdecimal():
        raise ConfigError(f"the variable {name} must hold a whole number, got {text!r}; torchrun sets it.")
    return int(text)


@contextmanager
def join(device: str, patience: float | None) -> Iterator[World]:
    """Meet the ranks that were launched together, and part at the end.

    device: `cpu` or `cuda`; of several GPUs a rank takes the one of its local rank.
    patience: seconds that a rank waits for the others in one exchange; None: torch's default.
    Raises ConfigError when the launcher told only half, or when there are more ranks than GPUs; RankLostError when
    another rank ended meanwhile.
    """
    size = launched_ranks()
    if size == 1:
        yield World(device=device)
        return
    if missing := [name for name in _NEEDED if name not in os.environ]:
        raise ConfigError(
            f"WORLD_SIZE={size} says that several ranks were launched, but {', '.join(missing)} is not "
            "set; start them with torchrun, see docs/cluster.md."
        )
    rank, local_rank = launched_rank(), _told("LOCAL_RANK", 0)
    if rank == 0 and _shares_store_of_restarts():
        logger.warning(
            "torchrun will start ranks again, but in the store of those before: they may look for each other at "
            "addresses that are gone. Set TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1 for torchrun, see docs/cluster.md."
        )
    world = World(rank, size, local_rank, _device_of(device, local_rank))
    backend = "gloo" if world.device == "cpu" else "cpu:gloo,cuda:nccl"
    timeout = None if patience is None else timedelta(seconds=patience)
    dist.init_process_group(backend, timeout=timeout)
    keep_to_the_end()
    try:
        with losses_explained(rank):
            yield world
    finally:
        dist.destroy_process_group()


def _shares_store_of_restarts() -> bool:
    """Whether torchrun keeps one store for all starts of the ranks: it makes it at the first rendezvous only, and the
    ranks' addresses stay under the same keys (torch 2.11, `DynamicRendezvousHandler._bootstrap_store_info`)."""
    restarts = _told("TORCHELASTIC_MAX_RESTARTS", 0)
    return restarts > 0 and os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"


def _device_of(device: str, local_rank: int) -> str:
    if device != "cuda":
        return device
    if local_rank >= torch.cuda.device_count():
        raise ConfigError(
            f"local rank {local_rank} has no GPU of its own: this machine has {torch.cuda.device_count()}. Launch "
            "as many ranks as there are GPUs (torchrun --nproc-per-node)."
        )
    torch.cuda.set_device(local_rank)
    return f"cuda:{local_rank}"


def shard_mesh(world: World, shard_ranks: int | None) -> DeviceMesh:
    """The mesh of sharded weights: `(shards,)`, or `(copies, shards)` for hybrid sharding.

    Raises ConfigError when the ranks do not divide into copies.
    """
    kind = torch.device(world.device).type
    shards = world.size if shard_ranks is None else shard_ranks
    if world.size % shards:
        raise ConfigError(
            f"{world.size} ranks do not divide into copies of train.parallel.shard_ranks={shard_ranks}; choose a "
            "divisor, usually the GPUs of one machine."
        )
    if shards == world.size:
        return kept_mesh(kind, (shards,), ("shards",))
    return kept_mesh(kind, (world.size // shards, shards), ("copies", "shards"))


def kept_mesh(kind: str, shape: tuple[int, ...], names: tuple[str, ...] | None) -> DeviceMesh:
    """A mesh of all ranks, row by row, whose groups last to the end of the process; all ranks must call it."""
    mesh = init_device_mesh(kind, shape, mesh_dim_names=names)
    keep_to_the_end(*mesh.get_all_groups())
    return mesh


def local(tensor: Tensor) -> Tensor:
    """This rank's part of a tensor: its shard where it is sharded, else all of it. Shares memory."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def whole(tensor: Tensor) -> Tensor:
    """All of a tensor, put together from the ranks where it is sharded; every rank must ask."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
