"""A model that learns the demo's task for so many seconds."""

import time

import torch

from draws.data import Lesson
from vla_mot.commands.console import console
from vla_mot.train.average import AveragedWeights
from vla_mot.train.batches import Batches
from vla_mot.train.optimizer import Optimizers, learning_rate
from vla_mot.train.parallel import prepare
from vla_mot.train.step import Passes
from vla_mot.train.validation import fixed_losses, totals
from vla_mot.train.world import World


class Racer:
    """A rank of those that train one model.

    budget: seconds of the whole training, over which the learning rate moves as over all steps of the demo.
    """

    def __init__(self, world: World, lesson: Lesson, budget: float) -> None:
        console.quiet = True  # what is found was said once, when the lesson was prepared
        config, data = lesson.config, lesson.open(world.size)
        self._config, self._world, self._budget = config.train, world, budget
        self._seconds, self._steps = 0.0, 0
        self._model = lesson.model(data)
        learner = prepare(self._model, self._config, world)
        batches = Batches.of(self._config.batch_size, world.size)
        self._passes = Passes(self._model, learner, self._config, batches, world)
        self._optimizers = Optimizers(self._model, self._config)
        self._average = AveragedWeights(self._model, self._config.ema_decay)
        tokenize = self._model.understanding.tokenize
        self._batches = data.loader(config, tokenize, world).batches(prefetch=0)
        self._scenes = data.validation_batches(config, tokenize)
        self._passes.gradient(0, next(self._batches).to(world.device))  # whatever is compiled is compiled now

    def train(self, until: float) -> tuple[int, float]:
        """Train until so many seconds of its own are spent; returns the steps and seconds of all turns so far.

        Seconds include making batches, and neither validation nor compilation.
        """
        while self._seconds < until:
            start = time.perf_counter()
            self._step()
            # The main rank's clock counts: all of them must stop after the same step.
            took = time.perf_counter() - start if self._world.is_main else 0.0
            self._seconds += float(self._world.sum(torch.tensor(took)))
        return self._steps, self._seconds

    def _step(self) -> None:
        done = min(1.0, self._seconds / self._budget)
        self._optimizers.zero_grad()
        self._passes.gradient(self._steps, next(self._batches).to(self._world.device))
        self._optimizers.step(learning_rate(int(done * self._config.steps), self._config))
        self._average.update(self._model)
        self._steps += 1

    @torch.no_grad()
    def validate(self) -> tuple[float, float]:
        """(action, foresight) loss of the averaged weights, on noise that is the same for every K and every seed."""
        sums = torch.zeros(4, dtype=torch.float64)
        with self._average.inside(self._model):
            for batch in self._scenes:
                sums += totals(fixed_losses(self._model, batch.to(self._world.device), seed=0))
        action, actions, foresight, latents = sums.tolist()
        return action / max(actions, 1.0), foresight / max(latents, 1.0)
