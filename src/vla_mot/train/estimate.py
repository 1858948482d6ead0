"""The memory that training takes on one rank, before anything is started.

What stays (weights, gradients, optimizer state, averages) is counted weight by weight; what a pass needs besides comes
from a rehearsal of the pass itself (`train.rehearsal`), so that no formula has to follow the model.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from vla_mot.errors import ConfigError
from vla_mot.model.model import VlaMotModel
from vla_mot.train.batches import Batches
from vla_mot.train.config import TrainConfig
from vla_mot.train.gathering import GATHERED
from vla_mot.train.rehearsal import ACTIVATIONS, rehearse

_BLOCK, _LEAST = 256, 4096  # bitsandbytes: numbers that share a scale; smaller weights keep a float32 state
_MUON_STEP = (
    8  # bytes per number of a matrix, while Muon works on it: its update, and three rounds in bfloat16
)


@dataclass(frozen=True)
class Memory:
    """Bytes on one rank, the fullest.

    parameters: weights and buffers. gradients: of all trained weights, twice where they are added up beside those that
    travel. optimizer: its state. average: averaged weights. activations: what a pass keeps and uses meanwhile, with the
    batch. gathered: other ranks' shards of weights, and gradients on their way to them, while layers compute.
    peak: the most at one time: less than the sum where gradients come as activations go.
    """

    parameters: int
    gradients: int
    optimizer: int
    average: int
    activations: int
    gathered: int
    peak: int


def estimate(
    model: VlaMotModel, train: TrainConfig, batches: Batches, latents: torch.dtype | None = None
) -> Memory:
    """Estimate what a step takes. model: as `train.planned` makes it; it cannot be used afterwards.

    latents: see `planned.stand_in`. Raises ConfigError when the ranks do not divide into shards.
    """
    shards = _shards(train, batches.ranks)
    trained = [p for p in model.parameters() if p.requires_grad]
    # DDP keeps gradients in buckets, from which they travel; several passes add them up first, beside the buckets.
    copies, passes = batches.ranks > 1 and train.parallel.strategy == "ddp", batches.accumulate > 1
    stays = copies or passes
    parameters = _bytes(model.parameters(), model, shards) + sum(b.nbytes for b in model.buffers())
    gradients = _bytes(trained, model, 1 if stays else shards)
    buckets = gradients if copies and passes else 0
    optimizer = _optimizer(model, trained, train.optimizer, shards)
    averaged = [w for w in model.state_dict(keep_vars=True).values() if w.requires_grad and train.ema_decay]
    average = _bytes(averaged, model, shards)
    update = _MUON_STEP * max((p.numel() for p in _matrices(model)), default=0)
    live = rehearse(model, train, batches, latents, holds_gradients=stays, shards=shards)
    step = gradients + (update if train.optimizer == "muon" else 0)
    peak = parameters + optimizer + average + buckets + max(live.peak.total(), step)
    made = live.most[ACTIVATIONS], live.most[GATHERED]
    return Memory(parameters, gradients + buckets, optimizer, average, *made, peak)


def _shards(train: TrainConfig, ranks: int) -> int:
    """Among how many ranks every weight is divided."""
    parallel = train.parallel
    if parallel.strategy != "fsdp" or ranks == 1:
        return 1
    shards = parallel.shard_ranks or ranks
    if ranks % shards:
        raise ConfigError(
            f"{ranks} ranks do not divide into copies of train.parallel.shard_ranks={shards}; choose a divisor, "
            "usually the GPUs of one machine."
        )
    return shards


def _bytes(tensors: Iterable[Tensor], model: VlaMotModel, shards: int) -> int:
    whole = model.tokenizer_parameters()
    return sum(
        _share(t, 1 if t in whole or not isinstance(t, nn.Parameter) else shards) * t.element_size()
        for t in tensors
    )


def _share(tensor: Tensor, shards: int) -> int:
    """Numbers of a tensor that one rank holds: torch divides the rows, and the first rank has no fewer than others."""
    if shards == 1 or not tensor.dim():
        return tensor.numel()
    return math.ceil(tensor.shape[0] / shards) * math.prod(tensor.shape[1:])


def _optimizer(model: nn.Module, trained: Iterable[Tensor], kind: str, shards: int) -> int:
    matrices = set(_matrices(model)) if kind == "muon" else set()
    return sum(
        4 * _share(p, shards) if p in matrices else _adam(_share(p, shards), kind == "adamw8bit")
        for p in trained
    )


def _adam(numbers: int, quantised: bool) -> int:
    """Two moments of each number; of numbers that are not quantised, torch's step in float32 as well."""
    if quantised:
        return 8 * numbers if numbers < _LEAST else 2 * (numbers + 4 * math.ceil(numbers / _BLOCK))
    return 8 * numbers + 4


def _matrices(model: nn.Module) -> list[Tensor]:
    """What Muon trains."""
    return [m.weight for m in model.modules() if isinstance(m, nn.Linear) and m.weight.requires_grad]
