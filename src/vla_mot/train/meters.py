"""What a run measures of its own steps: losses by dataset and robot, gradient norms and rates by expert, its pace.

Sums stay on the device and wait for nobody; once per log window they are added up over ranks and become numbers.

    dataset/<name>/action_loss, …/foresight_loss    over the window; group/<name>/… in mixtures of many datasets
    embodiment/<name>/action_loss, …/foresight_loss
    grad_norm/<expert>, lr/<expert>                 of the window's last step
    samples_per_second, machine/data_wait, machine/utilisation, machine/tflops, machine/memory_gib

Legend: `B` batch, `O` datasets of the mixture, `R` ranks.
"""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from vla_mot.batch import Batch
from vla_mot.model.model import Losses
from vla_mot.train.experts import EXPERTS, expert_of
from vla_mot.train.origins import Origin, labels
from vla_mot.train.pace import MACHINE, Clock, peak_memory

_TERMS = 4  # action sum and count, foresight sum and count


@dataclass(frozen=True)
class Work:
    """What a run computes and could compute. flops: of one sample, forward and backward. ceiling: FLOP/s of a device,
    `pace.matmul_ceiling`."""

    flops: float
    ceiling: float


class Meters:
    """The log window of one rank.

    origins: the mixture's datasets, in the order of `Batch.origin[:, 0]`; without them nothing is told apart.
    rank, ranks: this one, of so many. work: None leaves utilisation out.
    """

    def __init__(
        self,
        origins: Sequence[Origin],
        device: str,
        rank: int = 0,
        ranks: int = 1,
        work: Work | None = None,
    ) -> None:
        self.origins, self.device, self.rank, self.ranks, self.work = origins, device, rank, ranks, work
        self._losses = torch.zeros(len(origins), _TERMS, dtype=torch.float64, device=device)
        self._samples = 0
        self._clock = Clock()

    def watch(self, batches: Iterable[Batch]) -> Iterator[Batch]:
        """Yield the batches, and count how long each was waited for."""
        return self._clock.watch(batches)

    def aside(self) -> AbstractContextManager[None]:
        """What is done meanwhile (validating, saving) does not count as time of training."""
        return self._clock.aside()

    @torch.no_grad()
    def add(self, batch: Batch, losses: Losses) -> None:
        """Count a batch, or a part of one, and its losses; nothing is waited for."""
        self._samples += batch.batch_size
        if batch.origin is None or not self.origins:
            return
        parts = (losses.action_sum, losses.action_count, losses.foresight_sum, losses.foresight_count)
        rows = torch.stack([part.detach().double() for part in parts], dim=1)  # (B, 4)
        self._losses.index_add_(0, batch.origin[:, 0], rows)

    def take(self) -> Tensor:
        """This rank's sums over the window, float64 on its device, to be added up over ranks; a new window begins.

        `(4·O + 3 + R,)`: loss terms by dataset; samples, seconds and seconds waited; GiB at the place of this rank.
        """
        memory = [0.0] * self.ranks
        memory[self.rank] = peak_memory(self.device)
        pace = [float(self._samples), *self._clock.take(), *memory]
        found = torch.cat([self._losses.flatten(), self._losses.new_tensor(pace)])
        self._losses.zero_()
        self._samples = 0
        return found

    def numbers(self, sums: Tensor) -> dict[str, float]:
        """What the sums of all ranks, added up, say."""
        count = _TERMS * len(self.origins)
        losses, pace = sums[:count].view(-1, _TERMS).cpu(), sums[count:].tolist()
        samples, seconds, waited, *memory = pace
        seconds = max(seconds / self.ranks, 1e-9)
        rate = samples / seconds
        found = loss_numbers(losses, self.origins) | {
            "samples_per_second": rate,
            f"{MACHINE}data_wait": waited / self.ranks / seconds,
            f"{MACHINE}memory_gib": max(memory),
        }
        if self.work is not None:
            reached = rate * self.work.flops / self.ranks
            found[f"{MACHINE}tflops"] = reached / 1e12
            found[f"{MACHINE}utilisation"] = reached / self.work.ceiling
        return found


def loss_numbers(losses: Tensor, origins: Sequence[Origin]) -> dict[str, float]:
    """Mean losses by dataset (or group) and by robot from `(O, 4)` sums and counts; what did not occur is left out."""
    found = {}
    for name, places in labels(origins).items():
        action, actions, foresight, foresights = losses[list(places)].sum(0).tolist()
        if actions:
            found[f"{name}/action_loss"] = action / actions
        if foresights:
            found[f"{name}/foresight_loss"] = foresight / foresights
    return found


@torch.no_grad()
def gradient_norms(model: nn.Module, total: float, clip_norm: float) -> dict[str, float]:
    """`grad_norm/<expert>` as it was before `clip_grad_norm_` scaled all gradients alike; every rank must ask.

    total: what `clip_grad_norm_` returned, the norm of all of them; the squares of the experts' add up to its square.
    Experts without a gradient are left out; all are nan where `total` is not finite. Waits for the device.
    """
    scale = min(1.0, clip_norm / (total + 1e-6)) or math.nan  # torch's own; 0 of an infinite gradient
    found: dict[str, list[Tensor]] = {}
    for name, weight in model.named_parameters():
        if weight.grad is not None and (owner := expert_of(name)) is not None:
            found.setdefault(owner, []).append(weight.grad)
    norms = {owner: _norm(found[owner]) for owner in EXPERTS if owner in found}
    values = torch.stack(list(norms.values())).tolist() if norms else []
    return {f"grad_norm/{owner}": value / scale for owner, value in zip(norms, values, strict=True)}


def _norm(gradients: Sequence[Tensor]) -> Tensor:
    """Of all together; sharded ones and whole ones are summed apart, since torch does not mix them."""
    kinds = [[g for g in gradients if isinstance(g, DTensor) is sharded] for sharded in (True, False)]
    totals = [torch.nn.utils.get_total_norm(kind) for kind in kinds if kind]
    parts = [total.full_tensor() if isinstance(total, DTensor) else total for total in totals]
    return torch.linalg.vector_norm(torch.stack(parts)) if len(parts) > 1 else parts[0]


def learning_rates(model: nn.Module, groups: Iterable[Mapping[str, Any]]) -> dict[str, float]:
    """`lr/<expert>` from the optimizers' parameter groups."""
    owners = {weight: expert_of(name) for name, weight in model.named_parameters()}
    found = {owners[weight]: float(group["lr"]) for group in groups for weight in group["params"]}
    return {f"lr/{owner}": found[owner] for owner in EXPERTS if owner in found}
