"""Averaged weights, for validation and inference."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, distribute_tensor

from vla_mot.train.world import local


class AveragedWeights:
    """Exponential moving average of a model's state; sharded as the model is.

    The decay is warmed up as min(decay, (1 + n) / (10 + n)), so that early averages forget their random start.
    With decay 0 there is no average: its state is the model's own, and costs no memory.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.decay = decay
        self.updates = 0
        own = model.state_dict()
        self.state = {name: tensor.detach().clone() for name, tensor in own.items()} if decay else own

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        """Move the average towards the model."""
        self.updates += 1
        if not self.decay:
            return
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates))
        mine, theirs = [], []
        for name, tensor in model.state_dict().items():
            if tensor.is_floating_point():
                mine.append(local(self.state[name]))
                theirs.append(local(tensor.detach()))
            else:
                self.state[name].copy_(tensor)
        torch._foreach_lerp_(mine, theirs, 1 - decay)

    @contextmanager
    def inside(self, model: nn.Module) -> Iterator[None]:
        """The model holds the averaged weights meanwhile; without an average, its own."""
        if self.decay:
            self._swap(model)
        try:
            yield
        finally:
            if self.decay:
                self._swap(model)

    @torch.no_grad()
    def _swap(self, model: nn.Module) -> None:
        """Exchange the numbers of both, one tensor at a time."""
        for name, tensor in model.state_dict().items():
            mine, theirs = local(self.state[name]), local(tensor.detach())
            kept = theirs.clone()
            theirs.copy_(mine)
            mine.copy_(kept)

    @torch.no_grad()
    def load(self, state: Mapping[str, Tensor], updates: int) -> None:
        """Restore a saved average from whole tensors; without an average, only its count."""
        self.updates = updates
        for name, tensor in self.state.items() if self.decay else ():
            fill(tensor, state[name])


@torch.no_grad()
def fill(tensor: Tensor, whole: Tensor) -> None:
    """Copy all of a tensor into one that may be sharded: each rank keeps its part."""
    if isinstance(tensor, DTensor):
        # Every rank has the whole one, so that nothing needs to be sent.
        whole = distribute_tensor(
            whole.to(tensor.device), tensor.device_mesh, tensor.placements, src_data_rank=None
        )
    local(tensor).copy_(local(whole))
