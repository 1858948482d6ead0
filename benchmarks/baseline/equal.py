"""Proof that the baseline computes what our model computes: a benchmark of other maths would be worth nothing."""

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from baseline.plain import PlainModel
from vla_mot.batch import Batch
from vla_mot.model.model import VlaMotModel
from vla_mot.model.objective import draw_noise, objective
from vla_mot.train.config import TrainConfig

LOSS, GRADIENT = 1e-4, 1e-3
"""Largest difference, relative: of the loss; of any tensor's gradient, to its own norm or a thousandth of all."""


@dataclass(frozen=True)
class Difference:
    """Between two models, relative: of the loss, of the whole gradient, and of the worst tensor's, by its name."""

    loss: float
    gradient: float
    worst: float
    tensor: str

    def __str__(self) -> str:
        return (
            f"loss {self.loss:.1e}, gradient {self.gradient:.1e}, at worst {self.worst:.1e} ({self.tensor})"
        )


def prove(model: VlaMotModel, batch: Batch) -> float:
    """Show that the baselines compute what ours computes; returns our loss as it is trained.

    Raises AssertionError when they do not.
    """
    torch.backends.cudnn.allow_tf32 = (
        False  # else one convolution of the stock tower is rounded, and no product
    )
    for name in ("plain", "lean"):
        found = require_equal(model, PlainModel(model, lean=name == "lean"), batch)
        print(f"{name} baseline and ours differ by: {found}", flush=True)
    with torch.no_grad():
        return float(objective(model(batch, *_noise(model, batch)), TrainConfig().foresight_weight).total)


def require_equal(model: VlaMotModel, plain: PlainModel, batch: Batch) -> Difference:
    """Compare losses and gradients on a batch, in float32. Raises AssertionError when they differ."""
    ours, mine = _gradients(model, model, batch)
    theirs, stock = _gradients(model, plain, batch)
    assert mine.keys() == stock.keys(), (
        f"gradients of only one model: {sorted(mine.keys() ^ stock.keys())[:5]}"
    )
    whole = _norm(mine.values())
    apart = {name: float((stock[name] - gradient).norm()) for name, gradient in mine.items()}
    relative = {name: apart[name] / max(float(mine[name].norm()), 1e-3 * whole) for name in apart}
    tensor = max(relative, key=lambda name: relative[name])
    total = sum(value**2 for value in apart.values()) ** 0.5 / whole
    found = Difference(abs(theirs - ours) / abs(ours), total, relative[tensor], tensor)
    assert found.loss < LOSS and found.worst < GRADIENT, f"the baseline computes something else: {found}"
    return found


def _gradients(model: VlaMotModel, learner: nn.Module, batch: Batch) -> tuple[float, dict[str, Tensor]]:
    """The loss and its gradients, which are taken from the model. learner: what is called, on the same weights."""
    model.zero_grad(set_to_none=True)
    # Both terms at full weight: a mistake in foresight must not hide behind λ.
    goal = objective(learner(batch, *_noise(model, batch)), foresight_weight=1.0).total
    goal.backward()
    found = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad(set_to_none=True)
    return float(goal.detach()), found


def _noise(model: VlaMotModel, batch: Batch) -> tuple[Tensor, Tensor]:
    return draw_noise(batch, 1, 0, 0, model.config.noise_level)


def _norm(tensors: Iterable[Tensor]) -> float:
    return float(torch.stack([tensor.norm() for tensor in tensors]).norm())
