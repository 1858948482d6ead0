"""One optimizer step: the passes over a rank's share of the batch, and the gradient of the global loss.

The numbers that the losses are means over are counted and added up across ranks before the first pass, so that every
pass contributes its part of the one global mean, however the batch is cut.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from vla_mot.batch import Batch
from vla_mot.model.model import Losses, VlaMotModel
from vla_mot.model.objective import draw_noise, global_counts, joint, objective
from vla_mot.train.adapters import dropping
from vla_mot.train.batches import Batches
from vla_mot.train.config import TrainConfig
from vla_mot.train.meters import gradient_norms
from vla_mot.train.parallel import autocast, one_pass
from vla_mot.train.watch import Phase
from vla_mot.train.world import World, whole


@dataclass(frozen=True)
class Gradient:
    """What a step's passes found: the global loss and its two terms, the gradient's norm before it was clipped.

    foresight: None where nothing of the global batch has a future. losses: per sample of this rank.
    asked: the sum of what the ranks were asked. norms: `meters.gradient_norms`.
    """

    loss: float
    action: float
    foresight: float | None
    norm: float
    losses: Losses
    asked: float
    norms: Mapping[str, float]


class Passes:
    """Computes gradients. learner: the model as `train.parallel.prepare` returned it."""

    def __init__(
        self, model: VlaMotModel, learner: nn.Module, config: TrainConfig, batches: Batches, world: World
    ) -> None:
        self.model, self.learner, self.config, self.batches, self.world = (
            model,
            learner,
            config,
            batches,
            world,
        )

    def gradient(
        self,
        step: int,
        batch: Batch,
        enter: Callable[[Phase], None] = lambda phase: None,
        asked: float = 0.0,
        *,
        norms: bool = False,
    ) -> Gradient:
        """Add the gradient of the global loss to the weights', and clip it.

        batch: this rank's share, on its device. enter: told which phase begins. asked: a number that travels to all
        ranks with the losses. norms: whether each expert's gradient is measured.
        """
        self.model.train()
        config, size = self.config, self.batches.micro_batch
        counts = global_counts(*self.model.loss_counts(batch, config.action_draws))
        terms, found = torch.tensor([0.0, 0.0, asked], device=batch.index.device), []
        with dropping(config.experts, config.seed, step, self.world):
            for start in range(0, batch.batch_size, size):
                part = batch[slice(start, start + size)] if size < batch.batch_size else batch
                noise, level = draw_noise(
                    part, config.action_draws, config.seed, step, self.model.config.noise_level
                )
                enter("forward")
                with one_pass(self.learner, last=start + size >= batch.batch_size):
                    with autocast(config.parallel, self.world.device):
                        losses: Losses = self.learner(part, noise, level)
                    goal = objective(losses, config.foresight_weight, counts)
                    enter("backward")
                    goal.total.backward()
                terms[:2] += torch.stack((goal.action, goal.foresight))
                found.append(losses)
        action, foresight, asked_all = self.world.sum(terms)
        norm = self._clip()
        return Gradient(
            loss=float(joint(action, foresight, config.foresight_weight)),
            action=float(action),
            foresight=float(foresight) if counts[1] else None,
            norm=norm,
            losses=_joined(found),
            asked=float(asked_all),
            norms=gradient_norms(self.model, norm, config.clip_norm) if norms else {},
        )

    def _clip(self) -> float:
        trained = [p for p in self.model.parameters() if p.grad is not None]
        return float(whole(nn.utils.clip_grad_norm_(trained, self.config.clip_norm)))


def _joined(parts: list[Losses]) -> Losses:
    def along(name: str) -> Tensor:
        return torch.cat([getattr(part, name).detach() for part in parts])

    return Losses(*map(along, ("action_sum", "action_count", "foresight_sum", "foresight_count")))
