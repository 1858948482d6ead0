"""How good the weights are on what they were never trained on: losses, open-loop actions, foresight, and a picture.

    action_loss, foresight_loss           of all validation samples, on noise that never changes
    dataset/<name>/…, embodiment/<name>/… the same, told apart
    action_mae…, action_rmse…             of sampled chunks: `open_loop`
    foresight/mse, foresight/copy_mse     of the foreseen latents of t + m, and of those of t in their place
    foresight/moving_mse, …/moving_copy_mse   the same where something moves: `evaluate.foresight`

Sampling costs K passes of the action expert, so only `val_open_loop` samples, spread evenly, are sampled and foreseen.
Every rank passes its part of every batch, and the sums are added up: numbers do not depend on how many ranks there are.

Legend: `B` batch, `V` views, `C` latent channels, `h`/`w` latent rows and columns, `O` datasets, `D` action dims.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from vla_mot.batch import Batch
from vla_mot.data.joining import join
from vla_mot.evaluate.foresight import moving_cells
from vla_mot.hub.spec import PolicySpec
from vla_mot.keyed import keyed_normal
from vla_mot.model.model import Losses, VlaMotModel
from vla_mot.model.objective import FIXED_STEP, draw_noise
from vla_mot.train.config import TrainConfig
from vla_mot.train.meters import loss_numbers
from vla_mot.train.open_loop import SUMS, chunk_errors, error_numbers
from vla_mot.train.origins import Origin
from vla_mot.train.pictures import Album, draw_grid

_CHUNK_STREAM = 8  # of the keyed noise that chunks are sampled from
_FORESIGHT = 6  # foreseen, copied, count; the same in moving cells


@dataclass(frozen=True)
class Scored:
    """What one rank found. sums: float64 on the CPU, to be added up over ranks. picture: `(H, W, 3)` uint8 of some of
    its samples, None where none has a future."""

    sums: Tensor
    picture: np.ndarray | None


class Validator:
    """Scores models on validation batches, which stay on the CPU.

    spec: whose robots act and how many Euler steps they take. origins: the datasets that the batches come from.
    rank, ranks: this one, of so many; all of them must call.
    """

    def __init__(
        self,
        batches: Sequence[Batch],
        spec: PolicySpec,
        origins: Sequence[Origin],
        config: TrainConfig,
        rank: int = 0,
        ranks: int = 1,
    ) -> None:
        self.batches, self.spec, self.origins, self.config = batches, spec, origins, config
        self.rank, self.ranks = rank, ranks
        self._chosen = self._choose() if batches else []

    @torch.no_grad()
    def score(self, model: VlaMotModel) -> Scored:
        """Score the weights that the model holds now. Leaves the model in evaluation mode."""
        model.eval()
        losses = torch.zeros(4, dtype=torch.float64)
        apart = torch.zeros(len(self.origins), 4, dtype=torch.float64)
        for batch in self._shares():
            found = fixed_losses(model, batch.to(_device(model)), self.config.seed)
            losses += totals(found)
            if batch.origin is not None and self.origins:
                apart.index_add_(0, batch.origin[:, 0], _rows(found))
        sampled, picture = self._sampled(model)
        return Scored(torch.cat([losses, apart.flatten(), sampled]), picture)

    def numbers(self, sums: Tensor) -> dict[str, float]:
        """What the sums of all ranks, added up, say; what was not scored is left out."""
        robots = [robot.embodiment for robot in self.spec.robots]
        widths = [4, 4 * len(self.origins), _FORESIGHT, *(SUMS * robot.action_dim for robot in robots)]
        losses, apart, foresight, *chunks = sums.split(widths)
        action, actions, miss, futures = losses.tolist()
        return {
            "action_loss": action / max(1.0, actions),
            **({"foresight_loss": miss / futures} if futures else {}),
            **loss_numbers(apart.view(-1, 4), self.origins),
            **_foresight_numbers(foresight.tolist()),
            **error_numbers(robots, [table.view(-1, SUMS) for table in chunks]),
        }

    # ---- which samples ----------------------------------------------------------------------------------------

    def _shares(self) -> Iterator[Batch]:
        """This rank's part of every batch, in passes of at most `micro_batch` samples where that is set."""
        for batch in self.batches:
            for part in self._cut(batch):
                yield self._own(part)

    def _own(self, batch: Batch) -> Batch:
        """This rank's part of a batch.

        Sharded weights need every rank in every pass: where there are fewer samples than ranks, the others pass one of
        them with everything masked that is counted.
        """
        if self.rank < batch.batch_size:
            return batch[slice(self.rank, None, self.ranks)]
        idle = batch[slice(0, 1)]
        return replace(
            idle,
            action_mask=torch.zeros_like(idle.action_mask),
            future_mask=torch.zeros_like(idle.future_mask),
        )

    def _choose(self) -> list[tuple[Batch, int | None]]:
        """At most `val_open_loop` samples, spread evenly over all: batches of one robot each, the same on every rank.

        The robot by its place in `spec.robots`; None: of those that do not act.
        """
        total = sum(batch.batch_size for batch in self.batches)
        chosen = torch.linspace(0, total - 1, min(total, self.config.val_open_loop)).round().long()
        found: dict[int, list[Batch]] = {}
        first = 0
        for batch in self.batches:
            rows = chosen[(chosen >= first) & (chosen < first + batch.batch_size)] - first
            first += batch.batch_size
            robots = self._robots(batch)[rows]
            for robot in robots.unique().tolist():
                found.setdefault(robot, []).append(batch[rows[robots == robot]])
        return [
            (part, None if robot < 0 else robot)
            for robot, batches in sorted(found.items())
            for part in self._cut(join(batches))
        ]

    def _cut(self, batch: Batch) -> Iterator[Batch]:
        """A batch in parts that the ranks can pass at once."""
        micro = self.config.parallel.micro_batch
        most = self.config.batch_size if micro is None else micro * self.ranks
        for start in range(0, batch.batch_size, most):
            yield batch[slice(start, start + most)]

    def _robots(self, batch: Batch) -> Tensor:
        """`(B,)` place in `spec.robots` of every sample's robot, −1 where it does not act."""
        names = [robot.embodiment.name for robot in self.spec.robots]
        if batch.origin is None or not self.origins:
            return torch.full((batch.batch_size,), 0 if len(names) == 1 else -1)
        places = [names.index(o.embodiment) if o.embodiment in names else -1 for o in self.origins]
        return torch.tensor(places)[batch.origin[:, 0]]

    # ---- sampling ---------------------------------------------------------------------------------------------

    def _sampled(self, model: VlaMotModel) -> tuple[Tensor, np.ndarray | None]:
        """Sums of foresight errors, then of every robot's action errors; and the picture."""
        foresight = torch.zeros(_FORESIGHT, dtype=torch.float64)
        errors = [torch.zeros(r.embodiment.action_dim, SUMS, dtype=torch.float64) for r in self.spec.robots]
        batches = [(self._own(batch), robot) for batch, robot in self._chosen]
        album = Album(self.config.val_pictures, sum(batch.batch_size for batch, _ in batches))
        for batch, robot in batches:
            batch = batch.to(_device(model))
            actions, foreseen = self._sample(model, batch, robot)
            if foreseen is not None:
                truth, present = _latents(model, batch)
                moving = moving_cells(truth, present, batch.future_mask)
                foresight += _foresight_sums(foreseen.float(), truth, present, moving, batch.future_mask)
                album.offer(batch, foreseen, moving)
            if robot is not None:
                processor = self.spec.processor(self.spec.robots[robot], model.understanding.tokenize)
                errors[robot] += chunk_errors(processor, batch, actions)
        strips = album.strips(model, self.origins) if self.config.val_pictures else []
        tables = torch.cat([foresight, *(table.flatten() for table in errors)])
        return tables, draw_grid(strips) if strips else None

    def _sample(self, model: VlaMotModel, batch: Batch, robot: int | None) -> tuple[Tensor, Tensor | None]:
        """Normalized chunks `(B, L, A)`, on noise that never changes, and latents `(B, V, C, h, w)`, if foreseen."""
        if robot is None:
            return batch.actions, model.prefill(batch.observation).foresight
        shape = (batch.actions.shape[1], batch.actions.shape[2])
        noise = keyed_normal(self.config.seed, FIXED_STEP, _CHUNK_STREAM, batch.index, shape)
        width = self.spec.robots[robot].embodiment.action_dim
        return model.sample(batch.observation, noise, self.spec.sampler.num_steps, width)


def fixed_losses(model: VlaMotModel, batch: Batch, seed: int) -> Losses:
    """Losses of a batch with one noise draw that never changes, as in inference."""
    model.eval()
    noise, level = draw_noise(batch, 1, seed, FIXED_STEP, model.config.noise_level)
    return model.losses(batch, noise, level)


def _terms(losses: Losses) -> tuple[Tensor, ...]:
    return losses.action_sum, losses.action_count, losses.foresight_sum, losses.foresight_count


def totals(losses: Losses) -> Tensor:
    """`(4,)` float64 on the CPU, over the batch: action sum and count, foresight sum and count."""
    return torch.stack([part.double().sum().cpu() for part in _terms(losses)])


def _rows(losses: Losses) -> Tensor:
    """`(B, 4)`: the same of every sample."""
    return torch.stack([part.double() for part in _terms(losses)], dim=1).cpu()


def _device(model: VlaMotModel) -> torch.device:
    return next(model.parameters()).device


def _latents(model: VlaMotModel, batch: Batch) -> tuple[Tensor, Tensor]:
    """Of frames t + m and t, `(B, V, C, h, w)` float32 each: as they were encoded, or encoded now."""
    seen, future = batch.observation, batch.future_latents
    truth = model.encode_frames(batch.future.unsqueeze(2)).squeeze(2) if future is None else future
    present = (
        model.encode_frames(seen.images[:, :, 1:]).squeeze(2)
        if seen.latents is None
        else seen.latents[:, :, 1]
    )
    return truth.float(), present.float()


def _foresight_sums(foreseen: Tensor, truth: Tensor, present: Tensor, moving: Tensor, seen: Tensor) -> Tensor:
    """`(6,)` float64 on the CPU: see `_FORESIGHT`. Every cell counts by the mean over its channels."""
    errors = [(guess - truth).square().mean(2).double() for guess in (foreseen, present)]
    regions = (seen[:, :, None, None].expand_as(moving), moving)
    sums = [
        part
        for cells in regions
        for part in (*((error * cells).sum() for error in errors), cells.sum().double())
    ]
    return torch.stack(sums).cpu()


def _foresight_numbers(sums: Sequence[float]) -> dict[str, float]:
    found = {}
    for place, region in ((0, ""), (3, "moving_")):
        foreseen, copied, count = sums[place : place + 3]
        if count:
            found[f"foresight/{region}mse"] = foreseen / count
            found[f"foresight/{region}copy_mse"] = copied / count
    return found
