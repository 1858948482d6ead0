"""How far sampled chunks are from recorded ones, in the robot's own units and in standard deviations.

    action_mae/<robot>/<dimension> (<unit>)   per named dimension; action_rmse/… likewise
    action_mae/<robot> (<unit>)               over the dimensions of that unit: joints and grippers stay apart
    action_mae_normalized                     over all dimensions of all robots, each in its own deviations

Legend: `B` batch, `L` chunk steps, `A`/`D` padded and real action dims, `S` real state dims.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from vla_mot.batch import Batch
from vla_mot.robots.dimensions import action_dimensions
from vla_mot.robots.embodiment import Embodiment
from vla_mot.robots.processor import Processor

SUMS = 5
"""Per dimension: |error| and error² in physical units, the same in deviations, and how many numbers they sum."""


def chunk_errors(processor: Processor, batch: Batch, actions: Tensor) -> Tensor:
    """Sums `(D, 5)` float64 on the CPU over the real steps of samples of one robot.

    actions: normalized `(B, L, A)` as sampled. Both chunks go through the robot's processor: un-normalized, and with
    the state added again where they were relative to it.
    """
    width, robot = processor.embodiment.action_dim, processor.robot
    state = robot.statistics.state.unnormalize(batch.observation.state[:, : processor.embodiment.state_dim])
    recorded = processor.physical(batch.actions, state)
    error = (processor.physical(actions, state) - recorded).double()
    deviations = (actions - batch.actions)[..., :width].double()
    real = batch.action_mask[..., :width]
    parts = [error.abs(), error.square(), deviations.abs(), deviations.square(), torch.ones_like(error)]
    return torch.stack([(part * real).sum((0, 1)) for part in parts], dim=1).cpu()


def error_numbers(embodiments: Sequence[Embodiment], sums: Sequence[Tensor]) -> dict[str, float]:
    """The means that `(D, 5)` sums of every robot say; what was not scored is left out."""
    found: dict[str, float] = {}
    for embodiment, table in zip(embodiments, sums, strict=True):
        named = [(dimension.name, dimension.unit) for dimension in action_dimensions(embodiment)]
        for unit in dict.fromkeys(unit for _, unit in named):
            rows = [row for row, (_, own) in enumerate(named) if own == unit]
            found |= _means(f"/{embodiment.name} ({unit})", *table[rows].sum(0)[[0, 1, 4]].tolist())
        for (name, unit), row in zip(named, table, strict=True):
            found |= _means(f"/{embodiment.name}/{name} ({unit})", *row[[0, 1, 4]].tolist())
    total = sum((table.sum(0) for table in sums), torch.zeros(SUMS, dtype=torch.float64))
    return found | _means("_normalized", *total[[2, 3, 4]].tolist())


def _means(name: str, absolute: float, squared: float, count: float) -> dict[str, float]:
    if not count:
        return {}
    return {f"action_mae{name}": absolute / count, f"action_rmse{name}": math.sqrt(squared / count)}
