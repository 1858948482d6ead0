"""Checkpoints of a run, in LeRobot's layout.

    <run>/checkpoints/000500/pretrained_model/   the policy (averaged weights, whole): `vla_mot.hub.native`
    <run>/checkpoints/000500/training_state/     what `resume` needs to continue bit by bit: `vla_mot.train.state`,
                                                 progress.json, manifest.json with the hash of each file
    <run>/checkpoints/last, best                 links to the newest, and to the one that validated best

A checkpoint is written under a temporary name by all ranks, flushed and renamed, so that a folder with a number is
whole. It may be written by a thread beside the next steps, from a copy of everything.
"""

import logging
import os
import re
import shutil
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vla_mot.errors import CheckpointError
from vla_mot.hub.files import read_json, write_json
from vla_mot.hub.manifest import compare, write_manifest
from vla_mot.hub.native import save_policy
from vla_mot.hub.spec import PolicySpec
from vla_mot.infer.golden import record_golden
from vla_mot.infer.policy import Policy
from vla_mot.model.model import VlaMotModel
from vla_mot.options import section
from vla_mot.train.adapters import merged
from vla_mot.train.average import AveragedWeights
from vla_mot.train.config import TrainConfig
from vla_mot.train.optimizer import Optimizers
from vla_mot.train.state import copied, read_state, state_of, write_state
from vla_mot.train.world import World, whole

log = logging.getLogger(__name__)

POLICY_FOLDER, STATE_FOLDER, LAST, BEST = "pretrained_model", "training_state", "last", "best"
PROGRESS_FILE = "progress.json"
_UNFINISHED = ".unfinished-"
"""How names begin that a kill may leave; the next checkpoint removes them."""


@dataclass(frozen=True)
class Progress:
    """Where a run stands: optimizer steps done, seconds of training spent, samples learned of each kind.

    best: the lowest validation loss so far. skipped: steps that were left out. usual: `spikes.RunningLoss`.
    """

    step: int
    seconds: float
    samples: Mapping[str, int] = field(default_factory=dict)
    best: float | None = None
    skipped: int = 0
    usual: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class _Content:
    """What one checkpoint holds. policy: whole tensors, on the main rank only. state: this rank's part."""

    progress: Progress
    updates: int
    policy: Mapping[str, Tensor]
    state: Mapping[str, Tensor]
    is_best: bool


class Checkpoints:
    """Those of one run; every rank has one of these, and calls it when the others do.

    described: the run's resolved configuration, which travels with the policy.
    """

    def __init__(
        self,
        run: Path,
        spec: PolicySpec,
        config: TrainConfig,
        world: World,
        described: Mapping[str, Any] | None = None,
    ) -> None:
        self._root, self._spec, self._config, self._described = run / "checkpoints", spec, config, described
        self._world = world
        self._line = world.beside() if config.save_async else world
        self._writing: _Background | None = None

    def save(
        self,
        progress: Progress,
        model: VlaMotModel,
        average: AveragedWeights,
        optimizers: Optimizers,
        *,
        is_best: bool = False,
    ) -> Path:
        """Write `checkpoints/<step>`, point `last` to it (and `best`), remove what need not stay. Returns the folder.

        With `save_async` it returns when everything is copied, and the folder appears later; what went wrong with the
        one before is raised now.
        """
        self.finish()
        content = _Content(
            progress,
            average.updates,
            merged(_whole_on_main(average.state(model), self._world), self._config.experts),
            state_of(model, average, optimizers),
            is_best,
        )
        folder = self._root / f"{progress.step:06d}"
        if not self._config.save_async:
            self._write(folder, content, self._world)
            return folder
        copy = replace(content, policy=copied(content.policy), state=copied(content.state))
        self._writing = _Background(lambda: self._write(folder, copy, self._line))
        return folder

    def finish(self) -> None:
        """Wait until everything is written. Raises what went wrong meanwhile."""
        if (writing := self._writing) is not None:
            self._writing = None
            writing.wait()

    @contextmanager
    def settled(self) -> Iterator[None]:
        """Around training: when that ends by an error, wait for the checkpoint that is being written meanwhile, and log
        what went wrong with it: the error itself has another reason."""
        try:
            yield
        except BaseException:
            try:
                self.finish()
            except Exception as error:
                log.error("%s", "\n".join([str(error), *getattr(error, "__notes__", ())]))
            raise

    def _write(self, final: Path, content: _Content, world: World) -> None:
        unfinished = self._root / f"{_UNFINISHED}{final.name}"
        try:
            world.main_only(lambda: self._begin(unfinished), "begin a checkpoint")
            write_state(unfinished / STATE_FOLDER, content.state, world)
            world.main_only(lambda: self._write_rest(unfinished, content), "write the policy")
        except BaseException as error:  # a full disk is not to be filled with what nobody can use
            if world.is_main:
                shutil.rmtree(unfinished, ignore_errors=True)
            if isinstance(error, OSError):
                error.add_note(f"The checkpoint {final} cannot be written; those before it are whole.")
            raise
        world.main_only(lambda: self._publish(unfinished, final, content.is_best), "rename the checkpoint")

    def _begin(self, unfinished: Path) -> None:
        """Make the folder, and remove what a kill left of any other: no two are written at a time."""
        for left in self._root.glob(f"{_UNFINISHED}*"):
            shutil.rmtree(left, ignore_errors=True)
        (unfinished / STATE_FOLDER).mkdir(parents=True)

    def _write_rest(self, folder: Path, content: _Content) -> None:
        golden = record_golden(_policy(self._spec, content.policy))
        save_policy(
            folder / POLICY_FOLDER, self._spec, content.policy, golden=golden, training=self._described
        )
        write_json(
            folder / STATE_FOLDER / PROGRESS_FILE,
            asdict(content.progress) | {"average_updates": content.updates},
        )
        write_manifest(folder / STATE_FOLDER)

    def _publish(self, unfinished: Path, final: Path, is_best: bool) -> None:
        with _aside(final):
            os.replace(unfinished, final)
        _point(self._root / LAST, final.name)
        if is_best:
            _point(self._root / BEST, final.name)
        for old in _superfluous(self._root, self._config):
            shutil.rmtree(old)


class _Background:
    """One call in a thread."""

    def __init__(self, call: Callable[[], None]) -> None:
        self._call = call
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="checkpoint")
        self._thread.start()

    def _run(self) -> None:
        try:
            self._call()
        except BaseException as error:
            self._error = error

    def wait(self) -> None:
        """Wait for its end. Raises its error."""
        self._thread.join()
        if self._error is not None:
            raise self._error


def _whole_on_main(tensors: Mapping[str, Tensor], world: World) -> dict[str, Tensor]:
    """Sharded tensors are put together one by one, in the main rank's host memory; nothing is left on the others."""
    found: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        full = whole(tensor)
        if world.is_main:
            found[name] = full if full is tensor else full.cpu()
    return found


def _policy(spec: PolicySpec, weights: Mapping[str, Tensor]) -> Policy:
    """A policy around these weights themselves: no copy is made."""
    with torch.device("meta"):
        shell = VlaMotModel(spec.model)
    shell.load_state_dict(weights, strict=True, assign=True)
    return Policy(shell.reset_buffers(next(iter(weights.values())).device), spec)


def find_checkpoint(path: Path) -> Path:
    """Return the newest checkpoint of a run, or `path` itself when it is one. Raises CheckpointError."""
    if (path / STATE_FOLDER).is_dir():
        return path
    found = newest_checkpoint(path)
    if found is None:
        raise CheckpointError(f"{path} holds no checkpoint to resume from: no {path / 'checkpoints'}/<step>.")
    return found


def newest_checkpoint(run: Path) -> Path | None:
    """Return the newest checkpoint of a run, or None when it has none."""
    found = _numbered(run / "checkpoints")
    return found[-1] if found else None


def load_checkpoint(
    folder: Path, model: VlaMotModel, average: AveragedWeights, optimizers: Optimizers, world: World
) -> Progress:
    """Restore weights, averaged weights and optimizer, whatever number of ranks wrote them; all ranks must call it.

    Raises CheckpointError when a file was changed or cut short, or when anything does not fit.
    """
    state = folder / STATE_FOLDER
    world.main_only(lambda: _require_unchanged(state), f"read {state}")
    told = read_json(state / PROGRESS_FILE)
    try:
        updates = int(told.pop("average_updates"))
        progress = section(Progress, "progress", told)
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"{state / PROGRESS_FILE} is damaged: {error!r}.") from error
    read_state(state, model, average, optimizers, world)
    average.updates = updates
    return progress


def _require_unchanged(state: Path) -> None:
    if problems := compare(state):
        raise CheckpointError(
            f"{state} is not as it was written: {'; '.join(problems[:3])}. Resume from an older checkpoint: remove "
            f"{state.parent}."
        )


def _superfluous(root: Path, config: TrainConfig) -> list[Path]:
    """Checkpoints that are neither among the newest, nor kept for their number, nor the best."""
    older = _numbered(root)[: -config.keep_checkpoints]
    best = (root / BEST).resolve().name if config.keep_best else None
    every = config.keep_every
    return [
        path
        for path in older
        if path.name != best and (every is None or int(path.name) == 0 or int(path.name) % every)
    ]


def _numbered(root: Path) -> list[Path]:
    if not root.is_dir():
        return []
    found = (path for path in root.iterdir() if re.fullmatch(r"\d{6,}", path.name))
    return sorted(found, key=lambda path: int(path.name))


@contextmanager
def _aside(final: Path) -> Iterator[None]:
    """Make way for another folder of this name: renamed, and removed when that stands there; else it is put back.

    What has the name is whole at any moment, as it would not be while it is removed.
    """
    if not final.exists():
        yield
        return
    aside = final.with_name(f"{_UNFINISHED}{final.name}-replaced")
    final.rename(aside)
    try:
        yield
    except BaseException:
        aside.rename(final)
        raise
    shutil.rmtree(aside, ignore_errors=True)


def _point(link: Path, name: str) -> None:
    beside = link.with_name(f".{link.name}")
    beside.unlink(missing_ok=True)
    beside.symlink_to(name)
    os.replace(beside, link)
