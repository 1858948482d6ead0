"""The training loop: steps, averaging, validation, checkpoints, and a stop that loses nothing.

Everything random is keyed (`vla_mot.keyed`, the stream's order), so the state of a run is its weights, its averaged
weights, its optimizer and its step: a killed and resumed run equals an uninterrupted one bit by bit on CPU. Every rank
runs this loop on its share of each batch; the main one logs.
"""

import math
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from signal import Signals
from typing import Any, Protocol

import torch
from torch import Tensor

from vla_mot.batch import Batch
from vla_mot.errors import CheckpointError, NonFiniteLossError, TrainingStoppedError
from vla_mot.hub.spec import PolicySpec
from vla_mot.model.model import VlaMotModel
from vla_mot.model.objective import FIXED_STEP, draw_noise
from vla_mot.train.average import AveragedWeights
from vla_mot.train.batches import Batches
from vla_mot.train.checkpoint import Checkpoints, Progress, load_checkpoint, newest_checkpoint
from vla_mot.train.config import TrainConfig
from vla_mot.train.log import RunLog
from vla_mot.train.optimizer import Optimizers, learning_rate
from vla_mot.train.parallel import autocast, prepare
from vla_mot.train.step import Passes
from vla_mot.train.stopping import agreed_stop, stop_code
from vla_mot.train.world import World, local

_USELESS = 1e4
"""An action loss this many times that of predicting nothing tells a blow-up from a hard batch."""


class Stream(Protocol):
    """A rank's training batches by step (`vla_mot.data.loader.Loader`), where the samples of one come from, in words,
    and how many are of which group of a mixture."""

    def batches(self, start: int = 0, stop: int | None = None, prefetch: int = 2) -> Iterator[Batch]: ...
    def describe(self, batch: Batch) -> str: ...
    def composition(self, batch: Batch) -> Mapping[str, int]: ...


Report = Callable[[int, dict[str, float]], None]
"""(steps done, newest numbers) → None; how a command draws its progress bar."""
Stop = Callable[[], Signals | None]
"""The signal by which this rank was asked to stop, if it was."""


class Trainer:
    """Trains one model in one run folder.

    stream: this rank's share of every batch. validation: batches that every rank has.
    described: the run's resolved configuration, written into every checkpoint. world: this rank among all.
    """

    def __init__(
        self,
        model: VlaMotModel,
        spec: PolicySpec,
        stream: Stream,
        validation: Sequence[Batch],
        config: TrainConfig,
        run: Path,
        described: Mapping[str, Any] | None = None,
        world: World | None = None,
    ) -> None:
        self.world = world or World(device=config.device)
        parallel = config.parallel
        batches = Batches.of(config.batch_size, self.world.size, parallel.micro_batch, parallel.accumulate)
        self.model = model
        self.passes = Passes(model, prepare(model, config, self.world), config, batches, self.world)
        self.spec, self.stream, self.validation = spec, stream, validation
        self.config, self.run_folder = config, run
        self.optimizers = Optimizers(model, config)
        self.average = AveragedWeights(model, config.ema_decay)
        self.checkpoints = Checkpoints(run, spec, config, self.world, described)
        self.progress = Progress(0, 0.0)
        self._learned: Batch | None = None  # the newest batch: what is saved must still make sense of it

    def resume(self, checkpoint: Path) -> None:
        """Continue from a checkpoint of this run."""
        self.progress = load_checkpoint(checkpoint, self.model, self.average, self.optimizers, self.world)

    def run(self, report: Report = lambda step, numbers: None, stop: Stop = lambda: None) -> Path:
        """Train to the last step; returns the last checkpoint.

        Raises NonFiniteLossError, naming the batch, when a loss or gradient is not finite, or when the weights that
        are to be saved blew up; the weights on disk are those of the last checkpoint that was proved good. Raises
        TrainingStoppedError when a rank was asked to stop: after the step that all were in, with a checkpoint of it.
        """
        log = RunLog(self.run_folder, from_step=self.progress.step) if self.world.is_main else None
        started = time.perf_counter() - self.progress.seconds
        try:
            # On the CPU a second thread that computes costs more than it hides: OpenMP then has more threads than
            # cores and stops spinning at its barriers (backward took 1.7 times as long).
            ahead = 0 if self.config.device == "cpu" else 2
            batches = self.stream.batches(self.progress.step, self.config.steps, prefetch=ahead)
            folder = self._newest_or_first()
            for step, batch in enumerate(batches, start=self.progress.step):
                samples = self._counted(batch)
                numbers, asked = self._step(step, batch.to(self.world.device), stop())
                self.progress = replace(
                    self.progress, step=step + 1, seconds=time.perf_counter() - started, samples=samples
                )
                report(step + 1, numbers)
                saved = self._after_step(log, numbers)
                folder = saved or folder
                if asked is not None and step + 1 < self.config.steps:
                    folder = saved or self.save()
                    self.checkpoints.finish()
                    raise TrainingStoppedError(asked, step + 1, folder)
            self.checkpoints.finish()
        finally:
            if log is not None:
                log.close()
        return folder

    def _newest_or_first(self) -> Path:
        name = f"{self.progress.step:06d}"
        return self.run_folder / "checkpoints" / name if self.progress.step else self.save()

    def _step(
        self, step: int, batch: Batch, asked: Signals | None
    ) -> tuple[dict[str, float], Signals | None]:
        """One optimizer step; returns its numbers, and by which signal any rank was asked to stop."""
        rate = learning_rate(step, self.config)
        found = self.passes.gradient(step, batch, stop_code(asked))
        numbers = {
            "loss": found.loss,
            "action_loss": found.action,
            "foresight_loss": found.foresight,
            "grad_norm": found.norm,
            "lr": rate,
        }
        bad = [name for name, value in numbers.items() if not math.isfinite(value)]
        if bad:
            raise self._blown_up(step, batch, f"{', '.join(bad)} is not finite")
        self.optimizers.step(rate)
        self.optimizers.zero_grad()
        self.average.update(self.model)
        self._learned = batch
        return numbers, agreed_stop(found.asked)

    def _counted(self, batch: Batch) -> dict[str, int]:
        """What all batches so far were made of, this one included."""
        new = {f"samples/{group}": n for group, n in self.stream.composition(batch).items()}
        new["samples/with actions"] = int(batch.action_mask.flatten(1).any(1).sum())
        new["samples/with foresight"] = int(batch.future_mask.any(1).sum())
        if self.world.size > 1:
            added = self.world.sum(torch.tensor(list(new.values()), device=self.world.device))
            new = dict(zip(new, added.tolist(), strict=True))
        return dict(Counter(self.progress.samples) + Counter(new)) | {
            name: self.progress.samples.get(name, 0) for name, n in new.items() if not n
        }

    def _blown_up(self, step: int, batch: Batch, what: str) -> NonFiniteLossError:
        """The error that names the batch of `step`, and how to go on."""
        kept = newest_checkpoint(self.run_folder)
        return NonFiniteLossError(
            f"step {step}: {what}. The batch holds {self.stream.describe(batch)}. The last good checkpoint is {kept}. "
            f"Look at these frames, or go on from it in a new run: init_from={kept} output=…, with a train.lr below "
            f"{self.config.lr:g}."
        )

    def _after_step(self, log: RunLog | None, numbers: dict[str, float]) -> Path | None:
        """Log, validate and save when their time has come; returns the checkpoint if one was written."""
        step, config = self.progress.step, self.config
        last, best = step == config.steps, False
        if log is not None and (step % config.log_every == 0 or last):
            rate = step * config.batch_size / max(self.progress.seconds, 1e-9)
            told = numbers | {"samples_per_second": rate, "seconds": self.progress.seconds}
            log.write("train", step, {**told, **self.progress.samples})
        if self.validation and (step % config.val_every == 0 or last):
            scores = self.validate()
            best = self._improved(scores)
            if log is not None:
                log.write("validation", step, scores | {"seconds": self.progress.seconds})
        if step % config.save_every == 0 or last or (best and config.keep_best):
            return self.save(is_best=best and config.keep_best)
        return None

    def _improved(self, scores: Mapping[str, float]) -> bool:
        """Whether the validation loss is the lowest so far, and remember it."""
        loss = scores["action_loss"] + self.config.foresight_weight * scores["foresight_loss"]
        if self.progress.best is not None and loss >= self.progress.best:
            return False
        self.progress = replace(self.progress, best=loss)
        return True

    @torch.no_grad()
    def validate(self) -> dict[str, float]:
        """Both losses of the averaged weights on the validation batches, with noise that never changes."""
        sums = torch.zeros(4, dtype=torch.float64)
        world, turns = self.world, -(-len(self.validation) // self.world.size)
        with self.average.inside(self.model):
            for turn in range(
                turns
            ):  # every rank passes equally often: sharded weights are gathered together
                number = turn * world.size + world.rank
                batch = self.validation[min(number, len(self.validation) - 1)]
                losses = self._fixed_losses(batch.to(world.device))
                sums += losses if number < len(self.validation) else 0
        sums = world.sum(sums)
        action, foresight = sums[0] / sums[1].clamp(min=1), sums[2] / sums[3].clamp(min=1)
        return {"action_loss": float(action), "foresight_loss": float(foresight)}

    def _fixed_losses(self, batch: Batch) -> Tensor:
        """(action sum, action count, foresight sum, foresight count), float64 on the CPU, as in inference."""
        self.model.eval()
        noise, level = draw_noise(batch, 1, self.config.seed, FIXED_STEP, self.model.config.noise_level)
        with autocast(self.config.parallel, self.world.device):
            losses = self.model.losses(batch, noise, level)
        parts = (losses.action_sum, losses.action_count, losses.foresight_sum, losses.foresight_count)
        return torch.stack([part.double().sum().cpu() for part in parts])

    def save(self, *, is_best: bool = False) -> Path:
        """Write a checkpoint of the present step; all ranks must call it.

        Raises NonFiniteLossError, and leaves the checkpoints as they are, when the weights blew up.
        """
        self._require_good()
        return self.checkpoints.save(
            self.progress, self.model, self.average, self.optimizers, is_best=is_best
        )

    @torch.no_grad()
    def _require_good(self) -> None:
        """Finite losses before an optimizer step say nothing of the weights after it: prove these.

        Both sets of weights must be finite and still make sense of the newest batch: two passes without gradient.
        """
        step = self.progress.step - 1
        for kind, state in (("weights", self.model.state_dict()), ("averaged weights", self.average.state)):
            bad = self._not_finite(state)
            if bad and self._learned is None:
                raise CheckpointError(
                    f"training would begin with weights that are not finite ({bad[0]}, …); init_from=… must name a "
                    "policy that can act: try an earlier checkpoint."
                )
            if bad and self._learned is not None:
                what = f"{len(bad)} of the {kind} ({bad[0]}, …) are not finite after it"
                raise self._blown_up(step, self._learned, what)
        if self._learned is None:
            return
        self._require_sense(step, "weights", self._learned)
        with self.average.inside(self.model):
            self._require_sense(step, "averaged weights", self._learned)

    def _not_finite(self, state: Mapping[str, Tensor]) -> list[str]:
        """Names of tensors that are not finite on some rank."""
        bad = torch.stack([~local(tensor).isfinite().all() for tensor in state.values()])
        everywhere = self.world.sum(bad.int()).tolist()
        return [name for name, count in zip(state, everywhere, strict=True) if count]

    def _require_sense(self, step: int, kind: str, batch: Batch) -> None:
        sums = self.world.sum(self._fixed_losses(batch))
        action_sum, action_count, foresight_sum, foresight_count = sums.tolist()
        action, foresight = action_sum / max(1.0, action_count), foresight_sum / max(1.0, foresight_count)
        nothing = 1.0 + float(batch.actions.square().mean())  # of the target noise − action, about
        if not (math.isfinite(foresight) and action < _USELESS * nothing):
            raise self._blown_up(
                step,
                batch,
                f"the {kind} after it are useless: on the same batch the action loss is {action:.3g}, the foresight "
                f"loss {foresight:.3g}",
            )
