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
    """Scalars of one global batch: what is minimised and its two terms (0 where nothing was labelled).

    foresight_count: how many numbers the second one is a mean over.
    """

    total: Tensor
    action: Tensor
    foresight: Tensor
    foresight_count: Tensor


def draw_noise(
    batch: Batch, draws: int, seed: int, step: int, config: NoiseLevelConfig
) -> tuple[Tensor, Tensor]:
    """Noise `(B, K, L, A)` and levels `(B, K)`, keyed by (seed, step, global sample index)."""
    shape = (draws, *batch.actions.shape[1:])
    noise = keyed_normal(seed, step, _NOISE_STREAM, batch.index, shape)
    uniform = keyed_uniform(seed, step, _LEVEL_STREAM, batch.index, draws)
    return noise, config.from_uniform(uniform).float()


def objective(losses: Losses, foresight_weight: float, counts: Tensor | None = None) -> Objective:
    """Means over the *global* batch: local sums over counts that are added up across ranks.

    Each rank's `total` is scaled by the number of ranks, so that the mean of the ranks' gradients, which data
    parallelism forms, is the gradient of the global loss.

    counts: `global_counts` of the whole batch of a step, where the losses are only a part of it: the terms are then
        this part's share of the means, to be added up. None: the losses are of this rank's whole batch, and the terms
        are of all ranks.
    """
    whole = counts is None
    if counts is None:
        counts = global_counts(losses.action_count, losses.foresight_count)
    action_count, foresight_count = counts.clamp(min=1).float()
    action = losses.action_sum.sum() / action_count
    foresight = losses.foresight_sum.sum() / foresight_count
    total = ranks() * joint(action, foresight, foresight_weight)
    terms = [term.detach() for term in (action, foresight)]
    action, foresight = map(across_ranks, terms) if whole else terms
    return Objective(total, action, foresight, counts[1])


def joint[T: (float, Tensor)](action: T, foresight: T | None, foresight_weight: float) -> T:
    """L_act + λ·L_gen, of L_act alone where nothing is foreseen.

    λ = 0 leaves the term out: zero times what is not finite is not zero, and weights whose gradient is zero decay.
    """
    return action + foresight_weight * foresight if foresight_weight and foresight is not None else action


def global_counts(action_count: Tensor, foresight_count: Tensor) -> Tensor:
    """Per-sample counts `(B,)` of this rank's batch → `(2,)` float64: over how many numbers the global means are."""
    return across_ranks(torch.stack((action_count.sum(), foresight_count.sum())).double())


def ranks() -> int:
    """Processes that train together."""
    return dist.get_world_size() if _together() else 1


def across_ranks(value: Tensor) -> Tensor:
    """The sum over ranks, in place."""
    if _together():
        dist.all_reduce(value)
    return value


def _together() -> bool:
    return dist.is_available() and dist.is_initialized()
