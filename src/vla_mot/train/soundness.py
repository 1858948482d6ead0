"""Whether weights are worth saving: finite, and still making sense of what they learned last.

Finite losses before an optimizer step say nothing of the weights after it. All ranks ask together and hear the same.
"""

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from vla_mot.batch import Batch
from vla_mot.model.model import VlaMotModel
from vla_mot.train.config import TrainConfig
from vla_mot.train.parallel import autocast
from vla_mot.train.validation import fixed_losses, totals
from vla_mot.train.world import World, local

_USELESS = 1e4
"""An action loss this many times that of predicting nothing tells a blow-up from a hard batch."""


def damaged(state: Mapping[str, Tensor], world: World) -> list[str]:
    """Names of tensors that are not finite on some rank."""
    bad = torch.stack([~local(tensor).isfinite().all() for tensor in state.values()])
    everywhere = world.sum(bad.int()).tolist()
    return [name for name, count in zip(state, everywhere, strict=True) if count]


@torch.no_grad()
def nonsense(model: VlaMotModel, batch: Batch, config: TrainConfig, world: World) -> str | None:
    """What is wrong with the losses of the weights that the model holds, in words; None: nothing.

    batch: this rank's share of one that was learned from, on its device.
    """
    with autocast(config.parallel, world.device):
        sums = totals(fixed_losses(model, batch, config.seed))
    size = torch.tensor([float(batch.actions.square().sum()), float(batch.actions.numel())])
    action_sum, action_count, foresight_sum, foresight_count, square, count = world.sum(
        torch.cat([sums, size.double()])
    ).tolist()
    action, foresight = action_sum / max(1.0, action_count), foresight_sum / max(1.0, foresight_count)
    nothing = 1.0 + square / count  # of the target noise − action, about
    sound = math.isfinite(foresight) or not config.foresight_weight  # else it is no part of what is minimised
    if sound and action < _USELESS * nothing:
        return None
    return f"on the same batch the action loss is {action:.3g}, the foresight loss {foresight:.3g}"
