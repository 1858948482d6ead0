"""The joint loss L = L_act + λ·L_gen over the global batch, and the keyed noise that it is computed with.

Legend: `B` batch, `K` noise draws, `L` chunk steps, `A` action dims.
"""

from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor

from vla_mot.batch import Batch
from vla_mot.flow.matching import NoiseLevelConfig
from vla_mot.keyed import keyed_normal, keyed_uniform
from vla_mot.model.model import Losses

FIXED_STEP = -1  # the step that keys noise which never changes: of validation losses
_NOISE_STREAM, _LEVEL_STREAM = 1, 2


@dataclass(frozen=True)
class Objective:
    """Scalars of one global batch: what is minimised and its two terms (0 where nothing was labelled)."""

    total: Tensor
    action: Tensor
    foresight: Tensor


def draw_noise(
    batch: Batch, draws: int, seed: int, step: int, config: NoiseLevelConfig
) -> tuple[Tensor, Tensor]:
    """Noise `(B, K, L, A)` and levels `(B, K)`, keyed by (seed, step, global sample index)."""
    shape = (draws, *batch.actions.shape[1:])
    noise = keyed_normal(seed, step, _NOISE_STREAM, batch.index, shape)
    uniform = keyed_uniform(seed, step, _LEVEL_STREAM, batch.index, draws)
    return noise, config.from_uniform(uniform).float()


def objective(losses: Losses, foresight_weight: float) -> Objective:
    """Means over the *global* batch: local sums over counts that are added up across ranks.

    Each rank's `total` is scaled by the number of ranks, so that the mean of the ranks' gradients, which data
    parallelism forms, is the gradient of the global loss.
    """
    counts = torch.stack((losses.action_count.sum(), losses.foresight_count.sum())).double()
    ranks = 1
    if dist.is_available() and dist.is_initialized():
        ranks = dist.get_world_size()
        dist.all_reduce(counts)
    action_count, foresight_count = counts.clamp(min=1).float()
    action = losses.action_sum.sum() / action_count
    foresight = losses.foresight_sum.sum() / foresight_count
    return Objective(
        total=ranks * (action + foresight_weight * foresight),
        action=_across_ranks(action.detach()),
        foresight=_across_ranks(foresight.detach()),
    )


def _across_ranks(value: Tensor) -> Tensor:
    if dist.is_available() and dist.is_initialized():
        dist.all_reduce(value)
    return value
