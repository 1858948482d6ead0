"""Averaged weights, for validation and inference."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, distribute_tensor

from vla_mot.train.world import local


class AveragedWeights:
    """Exponential moving average of a model's weights that train; sharded as the model is.

    The decay is warmed up as min(decay, (1 + n) / (10 + n)), so that early averages forget their random start.
    model: as it will be trained, for what does not train equals its average and is not kept twice.
    decay: 0: nothing is averaged, and nothing kept.
    own: the averages, by the names of `model.state_dict()`. updates: n.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.decay = decay
        self.updates = 0
        trained = {name for name, p in model.named_parameters(remove_duplicate=False) if p.requires_grad}
        self.own = {
            name: tensor.detach().clone()
            for name, tensor in model.state_dict().items()
            if decay and name in trained
        }

    def state(self, model: nn.Module) -> dict[str, Tensor]:
        """A whole state: averages of what trains, and the model's own of everything else."""
        return {**model.state_dict(), **self.own}

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        """Move the averages towards the model."""
        self.updates += 1
        if not self.own:
            return
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates))
        mine, theirs = zip(*self._pairs(model), strict=True)
        torch._foreach_lerp_(mine, theirs, 1 - decay)

    @contextmanager
    def inside(self, model: nn.Module) -> Iterator[None]:
        """The model holds the averages meanwhile; without any, its own weights."""
        self._swap(model)
        try:
            yield
        finally:
            self._swap(model)

    @torch.no_grad()
    def _swap(self, model: nn.Module) -> None:
        """Exchange the numbers of both, one tensor at a time."""
        for mine, theirs in self._pairs(model):
            kept = theirs.clone()
            theirs.copy_(mine)
            mine.copy_(kept)

    def _pairs(self, model: nn.Module) -> Iterator[tuple[Tensor, Tensor]]:
        """This rank's part of every average, and of the weight that it follows."""
        weights = model.state_dict() if self.own else {}
        for name, average in self.own.items():
            yield local(average), local(weights[name].detach())


@torch.no_grad()
def fill(tensor: Tensor, whole: Tensor) -> None:
    """Copy all of a tensor into one that may be sharded: each rank keeps its part."""
    if isinstance(tensor, DTensor):
        # Every rank has the whole one, so that nothing needs to be sent.
        whole = distribute_tensor(
            whole.to(tensor.device), tensor.device_mesh, tensor.placements, src_data_rank=None
        )
    local(tensor).copy_(local(whole))
