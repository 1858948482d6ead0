"""What is compared, and one training step of each: the same passes, optimizer and clipping around both models."""

from dataclasses import dataclass
from typing import Any, Self

from torch import nn

from baseline.plain import PlainModel
from vla_mot.batch import Batch
from vla_mot.errors import ConfigError, unknown_name
from vla_mot.model.model import VlaMotModel
from vla_mot.train.batches import Batches
from vla_mot.train.config import ParallelConfig, TrainConfig
from vla_mot.train.optimizer import Optimizers
from vla_mot.train.parallel import prepare
from vla_mot.train.step import Passes
from vla_mot.train.world import World

_MODELS = ("ours", "plain", "lean")
_WORDS: dict[str, dict[str, Any]] = {
    "bf16": {"precision": "bf16"},
    "compiled": {"compile": True},
    "selective": {"recompute": "selective"},
    "full": {"recompute": "full"},
}
_OURS_ALONE = {"compiled", "selective"}

LEGEND = """plain: the plain-transformers-style baseline (eager attention over a dense float mask, one layer loop over
three stock modules, fp32 norms, stock vision tower); lean: the same with our vision tower, and with rotary tables and
mask made once per pass. selective, full: layers recomputed in the backward pass. compiled: layers by torch.compile."""


@dataclass(frozen=True)
class Variant:
    """A model and how its steps are computed. model: `plain` and `lean` are the baseline, see `PlainModel`."""

    model: str
    parallel: ParallelConfig

    @classmethod
    def of(cls, name: str) -> Self:
        """From a name such as `plain+bf16` or `ours+full+compiled`. Raises ConfigError for one that there is not."""
        model, *words = name.split("+")
        if model not in _MODELS:
            raise ConfigError(unknown_name("model", model, _MODELS))
        known = [word for word in _WORDS if model == "ours" or word not in _OURS_ALONE]
        options: dict[str, Any] = {}
        for word in words:
            if word not in known:
                raise ConfigError(unknown_name(f"way of training {model!r}", word, known))
            options |= _WORDS[word]
        return cls(model, ParallelConfig(**options))


class Runner:
    """Trains a model, in place, in the way of one variant."""

    def __init__(self, model: VlaMotModel, variant: Variant, device: str) -> None:
        # So small a rate changes no loss visibly: every step is the same work on numbers that stay in order.
        self.config = TrainConfig(lr=1e-6, parallel=variant.parallel, device=device)
        self._model, self._world = model, World(device=device)
        self._learner: nn.Module = prepare(model, self.config, self._world)
        if variant.model != "ours":
            lean, recompute = variant.model == "lean", variant.parallel.recompute == "full"
            self._learner = PlainModel(model, lean=lean, recompute=recompute)
        self._optimizers = Optimizers(model, self.config)

    def step(self, batch: Batch) -> float:
        """One optimizer step; returns the loss before it, of noise that is always the same."""
        batches = Batches.of(batch.batch_size, self._world.size)
        passes = Passes(self._model, self._learner, self.config, batches, self._world)
        gradient = passes.gradient(0, batch)
        self._optimizers.step(self.config.lr)
        self._optimizers.zero_grad()
        return gradient.loss
