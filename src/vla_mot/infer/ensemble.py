"""Temporal ensembling: at every control step, the average of all chunks that say something about it.

After ACT (Zhao et al. 2023, arXiv 2304.13705, section IV-A): weights exp(−m·i), where i = 0 is the oldest chunk. So the
oldest weighs most; the larger m, the more so. m = 0 is the plain mean.

Averaging is done in absolute physical units, where chunks that began at different states can be compared. It is a mean
of numbers: a gripper that half the chunks want closed is half closed, and an angle that wraps around is not understood.

Legend: `B` robots, `D` real action dims, `N` chunks that cover a step.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from vla_mot.infer.chunks import Chunks, TimedChunk


class EnsembledChunks(Chunks):
    """Asks for a chunk every `every` steps and averages. decay: m of exp(−m·i)."""

    def __init__(self, every: int, decay: float) -> None:
        super().__init__(every)
        self._decay = decay
        self._chunks: list[TimedChunk] = []

    def add(self, chunk: TimedChunk) -> None:
        """See `Chunks.add`."""
        super().add(chunk)
        self._chunks.append(chunk)

    def action(self, step: int) -> Tensor | None:
        """See `Chunks.action`."""
        self._chunks = [chunk for chunk in self._chunks if chunk.end > step]
        said = [action for chunk in self._chunks if (action := chunk.at(step)) is not None]
        return ensemble(torch.stack(said), self._decay) if said else None

    def keep(self, rows: Sequence[int]) -> None:
        """See `Chunks.keep`."""
        super().keep(rows)
        index = torch.as_tensor(list(rows), dtype=torch.int64)
        self._chunks = [chunk.rows(index) for chunk in self._chunks]


def ensemble(actions: Tensor, decay: float) -> Tensor:
    """`(N, B, D)` actions for the same step, of the oldest chunk first → their weighted mean `(B, D)`."""
    ages = torch.arange(len(actions), dtype=torch.float64)
    weights = torch.softmax(-decay * ages, dim=0).to(actions.device, actions.dtype)
    return torch.einsum("n,nbd->bd", weights, actions)
