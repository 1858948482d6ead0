"""The training loop: steps, averaging, validation, checkpoints, and a stop that loses nothing.

Everything random is keyed (`vla_mot.keyed`, the stream's order), so the state of a run is its weights, its averaged
weights, its optimizer and its step: a killed and resumed run equals an uninterrupted one bit by bit on CPU. Every rank
runs this loop on its share of each batch; the main one logs.
"""

import logging
import math
import time
from collections import Counter
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from signal import Signals
from typing import Any, Protocol

import torch

from vla_mot.batch import Batch
from vla_mot.errors import CheckpointError, ConfigError, NonFiniteLossError, TrainingStoppedError
from vla_mot.hub.spec import PolicySpec
from vla_mot.model.model import VlaMotModel
from vla_mot.model.objective import joint
from vla_mot.train.average import AveragedWeights
from vla_mot.train.batches import Batches
from vla_mot.train.checkpoint import Checkpoints, Progress, load_checkpoint, newest_checkpoint
from vla_mot.train.config import TrainConfig
from vla_mot.train.log import RunLog
from vla_mot.train.meters import Meters, Work, learning_rates
from vla_mot.train.optimizer import Optimizers, learning_rate
from vla_mot.train.origins import Origin
from vla_mot.train.parallel import autocast, prepare
from vla_mot.train.soundness import damaged, nonsense
from vla_mot.train.spikes import NotFinite, RunningLoss, spike_message
from vla_mot.train.step import Gradient, Passes
from vla_mot.train.stopping import agreed_stop, stop_code
from vla_mot.train.validation import Scored, Validator
from vla_mot.train.watch import Phase, Watchdog
from vla_mot.train.world import World

log = logging.getLogger(__name__)


class Stream(Protocol):
    """A rank's training batches by step (`vla_mot.data.loader.Loader`), where the samples of one come from, in words,
    and how many are of which group of a mixture."""

    def batches(self, start: int = 0, stop: int | None = None, prefetch: int = 2) -> Generator[Batch]: ...
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
    origins: the datasets of the mixture, whose losses are told apart. work: what a sample costs; None: not told.
    Raises ConfigError when the best checkpoint is to be kept, and nothing says which that is.
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
        origins: Sequence[Origin] = (),
        work: Work | None = None,
    ) -> None:
        if config.keep_best and not validation:
            raise ConfigError(
                "train.keep_best=true keeps the checkpoint that validated best, but no sample is held out to validate: "
                "raise data.validation_fraction until an episode is, or set train.keep_best=false."
            )
        self.world = world = world or World(device=config.device)
        self.model, self.stream, self.config, self.run_folder = model, stream, config, run
        parallel = config.parallel
        batches = Batches.of(config.batch_size, world.size, parallel.micro_batch, parallel.accumulate)
        self.passes = Passes(model, prepare(model, config, world), config, batches, world)
        self.optimizers = Optimizers(model, config)
        self.average = AveragedWeights(model, config.ema_decay)
        self.checkpoints = Checkpoints(run, spec, config, world, described)
        self.validator = Validator(validation, spec, origins, config, world.rank, world.size)
        self.meters = Meters(origins, world.device, world.rank, world.size, work)
        self.progress = Progress(0, 0.0)
        self._described = described
        self._learned: Batch | None = None  # the newest batch: what is saved must still make sense of it
        self._resumed_from: Path | None = None
        self._not_finite = NotFinite(
            config.safety.not_finite, config.safety.skip_steps, config.lr, tells=world.is_main
        )
        self._watchdog = Watchdog(run, config.safety.stuck_seconds, world.rank, world.size)

    def resume(self, checkpoint: Path) -> None:
        """Continue from a checkpoint of this run."""
        self.progress = load_checkpoint(checkpoint, self.model, self.average, self.optimizers, self.world)
        self._resumed_from = checkpoint

    def run(self, report: Report = lambda step, numbers: None, stop: Stop = lambda: None) -> Path:
        """Train to the last step; returns the last checkpoint.

        Raises NonFiniteLossError, naming the batch, when a loss or gradient is not finite, or when the weights that
        are to be saved blew up; the weights on disk are those of the last checkpoint that was proved good. Raises
        TrainingStoppedError when a rank was asked to stop: after the step that all were in, with a checkpoint of it.
        """
        written = self._open_log() if self.world.is_main else None
        try:
            with self._watchdog, self.checkpoints.settled(), closing(self._batches()) as batches:
                return self._run(batches, written, report, stop)
        finally:
            if written is not None:
                written.close()

    def _open_log(self) -> RunLog:
        return RunLog(
            self.run_folder,
            from_step=self.progress.step,
            config=self.config.log,
            described=self._described,
        )

    def _batches(self) -> Generator[Batch]:
        # On the CPU a second thread that computes costs more than it hides: OpenMP then has more threads than
        # cores and stops spinning at its barriers (backward took 1.7 times as long).
        ahead = 0 if self.config.device == "cpu" else 2
        return self.stream.batches(self.progress.step, self.config.steps, prefetch=ahead)

    def _run(self, batches: Generator[Batch], written: RunLog | None, report: Report, stop: Stop) -> Path:
        started = time.perf_counter() - self.progress.seconds
        folder = self._newest_or_first()
        self._enter("data")
        for step, batch in enumerate(self.meters.watch(batches), start=self.progress.step):
            samples = self._counted(batch)
            numbers, asked = self._step(written, step, batch.to(self.world.device), stop())
            self.progress = replace(
                self.progress, step=step + 1, seconds=time.perf_counter() - started, samples=samples
            )
            report(step + 1, numbers)
            with self.meters.aside():
                saved = self._after_step(written, numbers)
                if asked is not None and step + 1 < self.config.steps:
                    folder = saved or self.save()
                    self.checkpoints.finish()
                    raise TrainingStoppedError(asked, step + 1, folder)
            folder = saved or folder
            self._enter("data")
        self._enter("checkpoint")
        self.checkpoints.finish()
        return folder

    def _enter(self, phase: Phase) -> None:
        self._watchdog.enter(self.progress.step, phase)

    def _newest_or_first(self) -> Path:
        newest = self.run_folder / "checkpoints" / f"{self.progress.step:06d}"
        return newest if self.progress.step or newest == self._resumed_from else self.save()

    # ---- one step ---------------------------------------------------------------------------------------------

    def _step(
        self, written: RunLog | None, step: int, batch: Batch, asked: Signals | None
    ) -> tuple[dict[str, float], Signals | None]:
        """One optimizer step; returns its numbers, and by which signal any rank was asked to stop."""
        rate, told = learning_rate(step, self.config), self._is_logged(step + 1)
        found = self.passes.gradient(step, batch, self._enter, stop_code(asked), norms=told)
        self.meters.add(batch, found.losses)
        numbers = {
            "loss": found.loss,
            "action_loss": found.action,
            **({} if found.foresight is None else {"foresight_loss": found.foresight}),
            "grad_norm": found.norm,
            "lr": rate,
        }
        idle = () if self.config.foresight_weight else ("foresight_loss",)  # no part of what is minimised
        self._enter("optimizer")
        if bad := [name for name, value in numbers.items() if name not in idle and not math.isfinite(value)]:
            self._leave_out(written, step, batch, f"{', '.join(bad)} is not finite")
        else:
            self._judge(written, step, batch, found)
            self.optimizers.step(rate)
            self.average.update(self.model)
            self._learned = batch
        self.optimizers.zero_grad()
        return {**numbers, **found.norms}, agreed_stop(found.asked)

    def _leave_out(self, written: RunLog | None, step: int, batch: Batch, what: str) -> None:
        """Skip a step that is not finite, or raise, as `train.safety.not_finite` says."""
        skipped = self._not_finite.met(
            step,
            what,
            self._described_whole(batch),
            self.progress.skipped,
            newest_checkpoint(self.run_folder),
        )
        self.progress = replace(self.progress, skipped=skipped)
        if written is not None:
            written.write("skipped", step + 1, {"skipped": skipped})

    def _judge(self, written: RunLog | None, step: int, batch: Batch, found: Gradient) -> None:
        """Note a spike, and let the loss count towards what is usual."""
        usual, spike = RunningLoss.from_state(self.progress.usual), self.config.safety.spike
        if usual.is_spike(found.loss, spike):
            described = self._described_whole(batch)
            if self.world.is_main:
                log.warning("%s", spike_message(step, found.loss, usual, described))
            if written is not None:
                written.write("spike", step + 1, {"loss": found.loss, "usual": usual.mean})
        self.progress = replace(self.progress, usual=usual.after(found.loss, spike).state())

    def _counted(self, batch: Batch) -> dict[str, int]:
        """What all batches so far were made of, this one included, over all ranks."""
        new = {f"samples/{group}": n for group, n in self.stream.composition(batch).items() if group}
        new["samples/with actions"] = int(batch.action_mask.flatten(1).any(1).sum())
        new["samples/with foresight"] = int(batch.future_mask.any(1).sum())
        added = self.world.sum(torch.tensor(list(new.values()))).tolist()
        before = Counter(self.progress.samples)
        return dict(before) | {name: before[name] + n for name, n in zip(new, added, strict=True)}

    def _blown_up(self, step: int, batch: Batch, what: str) -> NonFiniteLossError:
        """The error that names the batch of `step`, and how to go on."""
        return self._not_finite.error(
            step, what, self._described_whole(batch), newest_checkpoint(self.run_folder)
        )

    def _described_whole(self, batch: Batch) -> str:
        """Where the samples of all ranks come from, of which `batch` is this one's; all must ask."""
        return "; ".join(self.world.gather(self.stream.describe(batch)))

    # ---- after a step -----------------------------------------------------------------------------------------

    def _is_logged(self, step: int) -> bool:
        return step % self.config.log_every == 0 or step == self.config.steps

    def _after_step(self, written: RunLog | None, numbers: dict[str, float]) -> Path | None:
        """Log, validate and save when their time has come; returns the checkpoint if one was written."""
        step, config = self.progress.step, self.config
        last, best = step == config.steps, False
        if self._is_logged(step):
            found = self.meters.numbers(self.world.sum(self.meters.take()))
            if written is not None:
                rates = learning_rates(self.model, self.optimizers.param_groups)
                told = {**numbers, **rates, **found, "seconds": self.progress.seconds}
                written.write("train", step, {**told, **self.progress.samples})
        if self.validator.batches and (step % config.val_every == 0 or last):
            best = self._validate(written)
        if step % config.save_every == 0 or last or (best and config.keep_best):
            return self.save(is_best=best and config.keep_best)
        return None

    def _validate(self, written: RunLog | None) -> bool:
        """Log how good the averaged weights are; returns whether they are the best so far."""
        self._enter("validation")
        scored = self._scored()
        scores = self.validator.numbers(self.world.sum(scored.sums))
        if written is not None:
            written.write("validation", self.progress.step, scores | {"seconds": self.progress.seconds})
            if scored.picture is not None:
                written.picture(self.progress.step, scored.picture)
        return self._improved(scores)

    def validate(self) -> dict[str, float]:
        """What `train.validation` says of the averaged weights, with noise that never changes."""
        return self.validator.numbers(self.world.sum(self._scored().sums))

    def _scored(self) -> Scored:
        with self.average.inside(self.model), autocast(self.config.parallel, self.world.device):
            return self.validator.score(self.model)

    def _improved(self, scores: Mapping[str, float]) -> bool:
        """Whether the validation loss is the lowest so far, and remember it. One that is no number never is."""
        loss = joint(scores["action_loss"], scores.get("foresight_loss"), self.config.foresight_weight)
        if not math.isfinite(loss) or (self.progress.best is not None and loss >= self.progress.best):
            return False
        self.progress = replace(self.progress, best=loss)
        return True

    def save(self, *, is_best: bool = False) -> Path:
        """Write a checkpoint of the present step; all ranks must call it.

        Raises NonFiniteLossError, and leaves the checkpoints as they are, when the weights blew up.
        """
        self._enter("checkpoint")
        self._require_good()
        return self.checkpoints.save(
            self.progress, self.model, self.average, self.optimizers, is_best=is_best
        )

    def _require_good(self) -> None:
        """Raise unless both sets of weights are finite and still make sense of the newest batch."""
        step, learned = self.progress.step - 1, self._learned
        held = {"weights": self.model.state_dict()}
        if self.average.decay:
            held["averaged weights"] = self.average.own
        for kind, state in held.items():
            if not (bad := damaged(state, self.world)):
                continue
            if learned is None:
                raise CheckpointError(
                    f"training would begin with weights that are not finite ({bad[0]}, …); init_from=… must name a "
                    "policy that can act: try an earlier checkpoint."
                )
            what = f"{len(bad)} of the {kind} ({bad[0]}, …) are not finite after it"
            raise self._blown_up(step, learned, what)
        if learned is None:
            return
        self._require_sense(step, "weights", learned)
        if self.average.decay:
            with self.average.inside(self.model):
                self._require_sense(step, "averaged weights", learned)

    def _require_sense(self, step: int, kind: str, batch: Batch) -> None:
        if (wrong := nonsense(self.model, batch, self.config, self.world)) is not None:
            raise self._blown_up(step, batch, f"the {kind} after it are useless: {wrong}")
