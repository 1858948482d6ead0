"""The training loop: steps, averaging, validation, checkpoints, and a stop that loses nothing.

Everything random is keyed (`vla_mot.keyed`, the stream's order), so the state of a run is its weights, its averaged
weights, its optimizer and its step: a killed and resumed run equals an uninterrupted one bit by bit on CPU.
"""

import math
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from vla_mot.batch import Batch
from vla_mot.errors import CheckpointError, NonFiniteLossError
from vla_mot.hub.spec import PolicySpec
from vla_mot.model.model import VlaMotModel
from vla_mot.model.objective import FIXED_STEP, draw_noise, objective
from vla_mot.train.checkpoint import Progress, load_checkpoint, newest_checkpoint, save_checkpoint
from vla_mot.train.config import TrainConfig
from vla_mot.train.log import RunLog
from vla_mot.train.optimizer import AveragedWeights, Optimizers, learning_rate

_USELESS = 1e4
"""An action loss this many times that of predicting nothing tells a blow-up from a hard batch."""


class Stream(Protocol):
    """Training batches by step (`vla_mot.data.loader.Loader`), where the samples of one come from, in words, and how
    many are of which group of a mixture."""

    def batches(self, start: int = 0, stop: int | None = None, prefetch: int = 2) -> Iterator[Batch]: ...
    def describe(self, batch: Batch) -> str: ...
    def composition(self, batch: Batch) -> Mapping[str, int]: ...


Report = Callable[[int, dict[str, float]], None]
"""(steps done, newest numbers) → None; how a command draws its progress bar."""


class Trainer:
    """Trains one model in one run folder.

    described: the run's resolved configuration, written into every checkpoint.
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
    ) -> None:
        self.model = model.to(config.device)
        self.model.stack.gradient_checkpointing = config.parallel.recompute != "none"
        self.spec, self.stream, self.validation = spec, stream, validation
        self.config, self.run_folder, self.described = config, run, described
        self.optimizers = Optimizers(self.model, config)
        self.average = AveragedWeights(self.model, config.ema_decay)
        self.progress = Progress(0, 0.0)
        self._learned: Batch | None = None  # the newest batch: what is saved must still make sense of it

    def resume(self, checkpoint: Path) -> None:
        """Continue from a checkpoint of this run."""
        self.progress = load_checkpoint(checkpoint, self.model, self.average, self.optimizers)

    def run(self, report: Report = lambda step, numbers: None) -> Path:
        """Train to the last step; returns the last checkpoint.

        Raises NonFiniteLossError, naming the batch, when a loss or gradient is not finite, or when the weights that
        are to be saved blew up; the weights on disk are those of the last checkpoint that was proved good.
        """
        log = RunLog(self.run_folder, from_step=self.progress.step)
        started = time.perf_counter() - self.progress.seconds
        try:
            # On the CPU a second thread that computes costs more than it hides: OpenMP then has more threads than
            # cores and stops spinning at its barriers (backward took 1.7 times as long).
            ahead = 0 if self.config.device == "cpu" else 2
            batches = self.stream.batches(self.progress.step, self.config.steps, prefetch=ahead)
            folder = self._newest_or_first()
            for step, batch in enumerate(batches, start=self.progress.step):
                samples = self._counted(batch)
                numbers = self._step(step, batch.to(self.config.device))
                self.progress = Progress(step + 1, time.perf_counter() - started, samples)
                report(step + 1, numbers)
                folder = self._after_step(log, numbers) or folder
        finally:
            log.close()
        return folder

    def _newest_or_first(self) -> Path:
        name = f"{self.progress.step:06d}"
        return self.run_folder / "checkpoints" / name if self.progress.step else self.save()

    def _step(self, step: int, batch: Batch) -> dict[str, float]:
        """One optimizer step; returns its numbers."""
        self.model.train()
        rate = learning_rate(step, self.config)
        config = self.config
        noise, level = draw_noise(
            batch, config.action_draws, config.seed, step, self.model.config.noise_level
        )
        goal = objective(self.model.losses(batch, noise, level), config.foresight_weight)
        self.optimizers.zero_grad()
        goal.total.backward()
        trained = [p for p in self.model.parameters() if p.grad is not None]
        norm = torch.nn.utils.clip_grad_norm_(trained, config.clip_norm)
        numbers = {
            "loss": float(goal.action + config.foresight_weight * goal.foresight),
            "action_loss": float(goal.action),
            "foresight_loss": float(goal.foresight),
            "grad_norm": float(norm),
            "lr": rate,
        }
        bad = [name for name, value in numbers.items() if not math.isfinite(value)]
        if bad:
            raise self._blown_up(step, batch, f"{', '.join(bad)} is not finite")
        self.optimizers.step(rate)
        self.average.update(self.model)
        self._learned = batch
        return numbers

    def _counted(self, batch: Batch) -> dict[str, int]:
        """What all batches so far were made of, this one included."""
        found = Counter(self.progress.samples)
        found.update({f"samples/{group}": n for group, n in self.stream.composition(batch).items()})
        found["samples/with actions"] += int(batch.action_mask.flatten(1).any(1).sum())
        found["samples/with foresight"] += int(batch.future_mask.any(1).sum())
        return dict(found)

    def _blown_up(self, step: int, batch: Batch, what: str) -> NonFiniteLossError:
        """The error that names the batch of `step`, and how to go on."""
        kept = newest_checkpoint(self.run_folder)
        return NonFiniteLossError(
            f"step {step}: {what}. The batch holds {self.stream.describe(batch)}. The last good checkpoint is {kept}. "
            f"Look at these frames, or go on from it in a new run: init_from={kept} output=…, with a train.lr below "
            f"{self.config.lr:g}."
        )

    def _after_step(self, log: RunLog, numbers: dict[str, float]) -> Path | None:
        """Log, validate and save when their time has come; returns the checkpoint if one was written."""
        step, config = self.progress.step, self.config
        last = step == config.steps
        if step % config.log_every == 0 or last:
            rate = step * config.batch_size / max(self.progress.seconds, 1e-9)
            told = numbers | {"samples_per_second": rate, "seconds": self.progress.seconds}
            log.write("train", step, {**told, **self.progress.samples})
        if self.validation and (step % config.val_every == 0 or last):
            log.write("validation", step, self.validate() | {"seconds": self.progress.seconds})
        return self.save() if step % config.save_every == 0 or last else None

    @torch.no_grad()
    def validate(self) -> dict[str, float]:
        """Both losses of the averaged weights on the validation batches, with noise that never changes."""
        sums = torch.zeros(4, dtype=torch.float64)
        with self._averaged():
            for batch in self.validation:
                sums += self._fixed_losses(batch.to(self.config.device))
        action, foresight = sums[0] / sums[1].clamp(min=1), sums[2] / sums[3].clamp(min=1)
        return {"action_loss": float(action), "foresight_loss": float(foresight)}

    @contextmanager
    def _averaged(self) -> Iterator[None]:
        """The model holds the averaged weights meanwhile."""
        own = {name: tensor.detach().clone() for name, tensor in self.model.state_dict().items()}
        self.average.copy_to(self.model)
        try:
            yield
        finally:
            self.model.load_state_dict(own, strict=True)

    def _fixed_losses(self, batch: Batch) -> Tensor:
        """(action sum, action count, foresight sum, foresight count), float64 on the CPU, as in inference."""
        self.model.eval()
        noise, level = draw_noise(batch, 1, self.config.seed, FIXED_STEP, self.model.config.noise_level)
        losses = self.model.losses(batch, noise, level)
        parts = (losses.action_sum, losses.action_count, losses.foresight_sum, losses.foresight_count)
        return torch.stack([part.double().sum().cpu() for part in parts])

    def save(self) -> Path:
        """Write a checkpoint of the present step.

        Raises NonFiniteLossError, and leaves the checkpoints as they are, when the weights blew up.
        """
        self._require_good()
        return save_checkpoint(
            self.run_folder,
            self.progress,
            self.spec,
            self.model,
            self.average,
            self.optimizers,
            self.config.keep_checkpoints,
            self.described,
        )

    @torch.no_grad()
    def _require_good(self) -> None:
        """Finite losses before an optimizer step say nothing of the weights after it: prove these.

        Both sets of weights must be finite and still make sense of the newest batch: two passes without gradient.
        """
        step = self.progress.step - 1
        for kind, state in (("weights", self.model.state_dict()), ("averaged weights", self.average.state)):
            bad = [name for name, tensor in state.items() if not bool(tensor.isfinite().all())]
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
        with self._averaged():
            self._require_sense(step, "averaged weights", self._learned)

    def _require_sense(self, step: int, kind: str, batch: Batch) -> None:
        action_sum, action_count, foresight_sum, foresight_count = self._fixed_losses(batch).tolist()
        action, foresight = action_sum / max(1.0, action_count), foresight_sum / max(1.0, foresight_count)
        nothing = 1.0 + float(batch.actions.square().mean())  # of the target noise − action, about
        if not (math.isfinite(foresight) and action < _USELESS * nothing):
            raise self._blown_up(
                step,
                batch,
                f"the {kind} after it are useless: on the same batch the action loss is {action:.3g}, the foresight "
                f"loss {foresight:.3g}",
            )
