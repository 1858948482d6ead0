"""One training step with K draws, on random samples."""

import time

from baseline.sizes import build, describe
from common import random_batch, synchronize

from draws.data import demo_model
from vla_mot.batch import Batch
from vla_mot.model.model import VlaMotModel
from vla_mot.train.batches import Batches
from vla_mot.train.config import ParallelConfig, TrainConfig
from vla_mot.train.optimizer import Optimizers
from vla_mot.train.parallel import prepare
from vla_mot.train.step import Passes
from vla_mot.train.world import World


class Stepper:
    """A rank of those that train a model of `size` (`demo` or one of `baseline.sizes`) with K `draws`.

    batch_size: of all ranks together. parallel: how.
    """

    def __init__(
        self, world: World, size: str, batch_size: int, draws: int, parallel: ParallelConfig, device: str
    ) -> None:
        # So small a rate that random samples teach nothing.
        self._config = TrainConfig(
            batch_size=batch_size, action_draws=draws, lr=1e-6, parallel=parallel, device=device
        )
        model, whole = model_and_batch(size, batch_size)
        batches = Batches.of(batch_size, world.size)
        self._world, self._about = world, describe(model, whole)
        self._batch = whole[world.rank * batches.share : (world.rank + 1) * batches.share].to(world.device)
        self._passes = Passes(model, prepare(model, self._config, world), self._config, batches, world)
        self._optimizers = Optimizers(model, self._config)

    def about(self) -> str:
        """What is trained, in words."""
        return self._about

    def step(self) -> float:
        """Train one step; returns its seconds."""
        synchronize(self._world.device)
        self._world.barrier()
        start = time.perf_counter()
        self._passes.gradient(0, self._batch)
        self._optimizers.step(self._config.lr)
        self._optimizers.zero_grad()
        synchronize(self._world.device)
        return time.perf_counter() - start


def model_and_batch(size: str, batch: int) -> tuple[VlaMotModel, Batch]:
    """A model with random weights, and random samples of which the demo's leave a camera and dimensions out."""
    if size != "demo":
        model = build(size, "cpu")
        return model, random_batch(model, batch, "cpu")
    model = demo_model()
    return model, random_batch(model, batch, "cpu", text="pick the red block", views=2, action_dims=3)
