"""A training run as `pretrain` and `posttrain` see it: new, resumed, or from a policy's weights."""

import platform
import time
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from vla_mot.commands import dry_run, folders, mixing, training
from vla_mot.commands.console import console, progress, show_library_log
from vla_mot.commands.repositories import locate
from vla_mot.commands.resume import continues, resumed_config
from vla_mot.commands.training_settings import TrainingConfig, training_config
from vla_mot.errors import ConfigError, DataWorkerError, TrainingStoppedError
from vla_mot.hub.checkpoint import open_checkpoint
from vla_mot.options import fit
from vla_mot.train.batches import Batches
from vla_mot.train.checkpoint import POLICY_FOLDER, newest_checkpoint
from vla_mot.train.loop import Trainer
from vla_mot.train.stopping import StopRequests, is_preemption
from vla_mot.train.watch import STUCK_FOLDER
from vla_mot.train.world import World, join, launched_rank, launched_ranks
from vla_mot.version import __version__

FACTS = "run.json"
_NO_RUN = (folders.LAUNCH, STUCK_FOLDER, folders.UNFINISHED.format(folders.CONFIG_NAME))
"""What may lie in the folder of a run that has not begun: what started it, and what is left of an attempt."""
_PATIENCE = (
    3600.0  # seconds that ranks wait for each other: for the main one to decode pictures or count statistics
)


@dataclass(frozen=True)
class Run:
    """What a training run is to do: its folder, how it trains, and where it starts.

    plain: the configuration as it is written to config.yaml. resume: continue what is in the folder.
    init_from: a policy's folder or Hub repository. command: the one that goes on with it.
    """

    folder: Path
    config: TrainingConfig
    plain: Mapping[str, Any]
    resume: bool = False
    init_from: str | Path | None = None
    command: str = "posttrain"

    @property
    def go_on(self) -> str:
        """How to continue, as a line to be typed."""
        return f"To go on: vla-mot {self.command} resume={self.folder}"


def _kept(run: Run) -> str:
    """What an interrupt at any moment left of a run."""
    if not (run.folder / folders.CONFIG_NAME).is_file():
        return f"Nothing was written to {run.folder}; the same command starts again."
    checkpoint = newest_checkpoint(run.folder)
    kept = f"The last checkpoint is {checkpoint}." if checkpoint else "There is no checkpoint yet."
    return f"{kept}\n{run.go_on}"


def run(command: str, config: dict[str, Any], overrides: list[str]) -> None:
    """Do what `vla-mot <command>` was asked for.

    Raises TrainingStoppedError when a scheduler asked for the machine: the present step is saved, and whoever handled
    the signal before (a launcher, which has the job queued again) has been called.
    """
    show_library_log()
    planned = fit(int | None, "ranks", config.get("ranks"))
    if fit(bool, "dry_run", config.get("dry_run", False)):
        console.quiet = launched_rank() > 0
        if continues(config) is not None:
            raise ConfigError(
                "dry_run=true plans a run that begins: leave resume out, and give the run's own words."
            )
        return dry_run.show(config, planned or launched_ranks())
    if planned is not None:
        raise ConfigError(
            f"ranks={planned} is for dry_run=true; a run has as many ranks as are launched: see docs/cluster.md."
        )
    device = fit(str, "train.device", config["train"]["device"])
    with join(device, _PATIENCE) as world:
        console.quiet = not world.is_main
        show_library_log(world.rank)
        # As the main rank sees it: a shared disk may answer late elsewhere.
        folder = world.gather(continues(config))[0]
        config = config | {"resume": folder}
        asked = _new_run(command, config) if folder is None else _resumed_run(command, config, overrides)
        world.barrier()  # nothing is written before every rank has seen the folder as it was
        checkpoint = complete(asked, world)
        console.print(f"policy: {checkpoint / 'pretrained_model'}")


def complete(run: Run, world: World) -> Path:
    """Train to the last step; returns the last checkpoint's folder. Every rank calls it.

    Raises KeyboardInterrupt, with how to go on, after Ctrl-C; TrainingStoppedError as `run` says.
    """
    stops = StopRequests()
    try:
        return train(run, world, stops)
    except KeyboardInterrupt as stop:
        raise KeyboardInterrupt(*stop.args or [_kept(run)]) from None
    except TrainingStoppedError as stop:
        if is_preemption(stop.asked):
            stops.hand_over(stop.asked, world.rank)
            raise
        raise KeyboardInterrupt(_told(stop, run)) from None


def _told(stop: TrainingStoppedError, run: Run) -> str:
    return f"Step {stop.step} of {run.config.train.steps} is kept in {stop.checkpoint}.\n{run.go_on}"


def _new_run(command: str, config: dict[str, Any]) -> Run:
    folder = fit(Path, "output", config["output"])
    if config["output"] == "???":
        raise ConfigError("output must be given: the folder of the run, for example output=outputs/run.")
    used = (
        f" To continue it: vla-mot {command} resume={folder}"
        if (folder / folders.CONFIG_NAME).is_file()
        else ""
    )
    folders.require_unused(folder, used, besides=_NO_RUN)
    return Run(folder, training_config(config), config, init_from=_init_from(config), command=command)


def _init_from(config: Mapping[str, Any]) -> str | Path | None:
    init_from = fit(Path | None, "init_from", config.get("init_from"))
    return locate(init_from) if init_from else None


def _resumed_run(command: str, config: dict[str, Any], overrides: list[str]) -> Run:
    folder = fit(Path, "resume", config["resume"])
    merged, changes = resumed_config(folder, config, overrides)
    for key, (before, now) in changes.items():
        console.print(f"resumed with another {key}: {before} → {now}")
    # A run that was killed before its first checkpoint begins again, with the weights that it began with.
    init_from = None if newest_checkpoint(folder) else _init_from(merged)
    return Run(folder, training_config(merged), merged, True, init_from, command)


def train(run: Run, world: World, stops: StopRequests) -> Path:
    """Train to the last step; returns the last checkpoint's folder. Every rank calls it.

    A run is resumable from the moment its config.yaml stands in its folder. When a rank is asked to stop, the present
    step is saved and TrainingStoppedError is raised. Raises ConfigError, before any data is opened, for a batch that
    these ranks cannot make.
    """
    parallel = run.config.train.parallel
    Batches.of(run.config.train.batch_size, world.size, parallel.micro_batch, parallel.accumulate)
    model = training.build_model(run.config)
    facts = folders.read_facts(run.folder / FACTS) if run.resume else None
    shards = (facts or {}).get("shards")
    data = world.one_after_main(lambda: mixing.open_data(run.config, shards, world.size))
    mixing.require_same_data(run.folder, facts, data)
    checkpoint = world.gather(newest_checkpoint(run.folder) if run.resume else None)[0]
    if checkpoint is None:
        training.prepare_weights(model, data, run.config.start, run.init_from)
    elif run.config.data.latents is not None:  # which are those of the tokenizer as it was fitted
        open_checkpoint(checkpoint / POLICY_FOLDER).load_into(model)
    data = world.one_after_main(partial(mixing.encoded, data, run.config, model, world.device))
    trainer = training.make_trainer(run.config, data, model, run.folder, run.plain, world)
    if checkpoint is not None:
        _restore(trainer, checkpoint)
    elif run.resume:
        console.print(f"{run.folder} has no checkpoint yet: training starts from the beginning")
    training.describe(run.config, data, model, trainer.passes.batches)
    world.main_only(partial(_write_facts, run, data, world), "write the run's configuration")
    return _run(trainer, run, stops)


def _write_facts(run: Run, data: mixing.Data, world: World) -> None:
    folders.write_config(run.folder, dict(run.plain))
    folders.write_facts(run.folder / FACTS, _facts(data) | {"ranks": world.size})


def _restore(trainer: Trainer, checkpoint: Path) -> None:
    trainer.resume(checkpoint)
    console.print(f"resumed at step {trainer.progress.step} from {checkpoint}")
    if trainer.progress.step > trainer.config.steps:
        raise ConfigError(
            f"the run has {trainer.progress.step} steps already; train.steps={trainer.config.steps} lies behind that."
        )


def _facts(data: mixing.Data) -> dict[str, Any]:
    return {
        "dataset": data.identity,
        "frames": sum(entry.frames for entry in data.mixture.entries),
        "shards": len(data.assignment.shards),
        "assignment": data.assignment.digest,
        "robots": data.robots_digest,
        "vla_mot": __version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "threads": torch.get_num_threads(),
    }


def _run(trainer: Trainer, run: Run, stops: StopRequests) -> Path:
    total, batch = run.config.train.steps, run.config.train.batch_size
    first, started = trainer.progress.step, time.perf_counter()
    with progress("train") as advance, stops:

        def report(step: int, numbers: dict[str, float]) -> None:
            rate = (step - first) * batch / (time.perf_counter() - started)
            terms = [(term, numbers.get(f"{term}_loss")) for term in ("action", "foresight")]
            told = [f"{term} {loss:.3f}" for term, loss in terms if loss is not None]
            advance(step, total, f"{' '.join(told)} {rate:.0f} samples/s")

        try:
            return trainer.run(report, lambda: stops.asked)
        except DataWorkerError as error:  # met between two steps, where the state is whole
            if trainer.world.size > 1:  # the other ranks wait for this one, which cannot save alone
                raise DataWorkerError(f"{error}\n{_kept(run)}") from None
            raise DataWorkerError(f"{error}\n{_save(trainer, run)}") from None


def _save(trainer: Trainer, run: Run) -> str:
    """Keep the present step, and say so."""
    checkpoint = trainer.save()
    trainer.checkpoints.finish()
    return f"Step {trainer.progress.step} of {run.config.train.steps} is kept in {checkpoint}.\n{run.go_on}"
