"""Puts a run's data together: mixture, statistics, robots, assignment, batches.

The order is the content: what is cheap and can fail comes first, so that a mistake leaves nothing behind.
"""

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vla_mot.batch import Batch
from vla_mot.commands.console import console, progress
from vla_mot.commands.counting import robots_of
from vla_mot.commands.training_settings import DataConfig, TrainingConfig
from vla_mot.data.assignment import Assignment, assign_exact, assign_lpt, position_shards, shards_of
from vla_mot.data.loader import Loader
from vla_mot.data.mapped_room import NoRoomError
from vla_mot.data.mixture import Mixture, resolve_mixture
from vla_mot.data.opened import OpenDatasets
from vla_mot.data.recipe import LatentsConfig, Opened, Recipe
from vla_mot.data.stream import StreamConfig
from vla_mot.data.windows import Collate, WindowConfig, WindowDataset
from vla_mot.errors import CheckpointError, ConfigError, DatasetError
from vla_mot.hub.spec import PolicySpec
from vla_mot.model.config import ModelConfig
from vla_mot.model.model import VlaMotModel
from vla_mot.robots.processor import Processor, Tokenize
from vla_mot.robots.robot import Robot
from vla_mot.train.origins import Origin
from vla_mot.train.world import World

_DECLARED = 64  # numbers per frame of a robot that is only declared
_DATASET_COST = 2**19
"""Bytes that an open dataset costs beside its frames: about, see docs/assignment.md."""
_FRAME_COST = 12
"""Bytes that a frame costs beside its state and action: its time, its instruction, its place in the order."""
_NAMED = 5  # datasets that a message lists


@dataclass(frozen=True)
class Data:
    """A run's data, ready for training. robots: all of them, those without actions (people) too.

    spec: of the policy, which knows only robots that act.
    """

    mixture: Mixture
    robots: tuple[Robot, ...]
    spec: PolicySpec
    recipe: Recipe
    assignment: Assignment

    @cached_property
    def datasets(self) -> OpenDatasets[Opened]:
        """The datasets as this process opens them: for validation, and what a new tokenizer is fitted on."""
        return OpenDatasets(self.recipe.open, 16)

    @property
    def origins(self) -> tuple[Origin, ...]:
        """Every dataset, its group and its robot, in the order of `Batch.origin[:, 0]`."""
        return tuple(
            Origin(entry.name, entry.group, entry.robot.name, entry.robot.cameras)
            for entry in self.mixture.entries
        )

    @property
    def identity(self) -> str:
        """Hash of what is learned from: of a single dataset's content, or of every dataset's metadata."""
        if len(self.mixture.entries) == 1:
            return self.datasets.get(0).source.content_hash
        manifest = [
            {key: row[key] for key in ("dataset", "revision", "weight")} for row in self.mixture.manifest()
        ]
        return hashlib.blake2b(json.dumps(manifest).encode(), digest_size=16).hexdigest()

    @property
    def robots_digest(self) -> str:
        """Hash of every robot's description and of the numbers that normalize it."""
        told = [
            [
                robot.embodiment.to_dict() | {"fps": None},
                robot.action_mode,
                *(feature.to_dict() for feature in (robot.statistics.state, robot.statistics.action)),
            ]
            for robot in self.robots
        ]
        return hashlib.blake2b(json.dumps(told).encode(), digest_size=16).hexdigest()

    def loader(self, config: TrainingConfig, tokenize: Tokenize, world: World) -> Loader:
        """The training batches of a rank."""
        stream = StreamConfig(
            recipe=replace(self.recipe, processors=self._processors(tokenize)),
            assignment=self.assignment,
            global_batch=config.train.batch_size,
            seed=config.train.seed,
            rank=world.rank,
            world_size=world.size,
            skip_broken=config.data.skip_broken > 0,
            most_open=config.data.most_open,
        )
        return Loader(stream, config.data.workers, config.data.skip_broken)

    def validation_batches(self, config: TrainingConfig, tokenize: Tokenize) -> list[Batch]:
        """At most `train.val_samples` held-out samples, of every dataset as many as its weight says."""
        processors = self._processors(tokenize)
        batches = []
        for number, count in self._shares(config.train.val_samples):
            opened = self._opened(number) if self.recipe.split.fraction else None
            held_out = None if opened is None else opened.validation
            if held_out is None:
                continue
            collate = Collate(processors[self.mixture.entries[number].robot.name])
            rows = torch.tensor(self._readable(held_out, spread(torch.arange(len(held_out)), count)))
            for part in rows.split(config.train.batch_size) if len(rows) else ():
                batches.append(collate(held_out.__getitems__(part)))
        return batches

    def some_frames(self, count: int) -> Tensor:
        """About `count` moments of the training data, as the model sees them: `(n, 3, H, W)` uint8, every camera."""
        found = []
        for number, part in self._shares(count):
            opened = self._opened(number)
            if opened is None:
                continue
            training = opened.training
            rows = self._readable(training, spread(torch.arange(len(training)), part))
            if rows:
                found.append(training.pictures.gather(training.frames[rows]).flatten(0, 1))
        if not found:
            raise DatasetError(
                "none of the training pictures that the foresight tokenizer is fitted on can be read."
            )
        return torch.cat(found)

    def _opened(self, number: int) -> Opened | None:
        """A dataset, or None where it cannot be read and may be skipped: the stream counts and names it."""
        try:
            return self.datasets.get(number)
        except DatasetError:
            if not self.recipe.tolerant:
                raise
            return None

    def _readable(self, dataset: WindowDataset, rows: Tensor) -> list[int]:
        """Those of the rows whose pictures can be read; all of them, or an error, unless broken ones may be skipped."""
        if not self.recipe.tolerant:
            return rows.tolist()
        found = []
        for row in rows.tolist():
            try:
                dataset[row]
            except DatasetError:
                continue
            found.append(row)
        return found

    def training_frames(self, config: TrainingConfig) -> float:
        """Frames that train: all but those that are held out, exactly for one dataset, about for several."""
        if len(self.mixture.entries) == 1:
            return len(self.datasets.get(0).training)
        return sum(entry.frames for entry in self.mixture.entries) * (1 - config.data.validation_fraction)

    def describe(self, config: TrainingConfig) -> Iterator[str]:
        """What is learned from, in words; durations in frames and in seconds."""
        entries = self.mixture.entries
        if len(entries) == 1:
            yield from self._describe_one(config)
            return
        frames, episodes = sum(e.frames for e in entries), sum(e.episodes or 0 for e in entries)
        names = ", ".join(str(robot) for robot in self.spec.robots) or "no robot that acts"
        yield f"data       {len(entries)} datasets of {names}: {episodes:,} episodes, {frames:,} frames"
        for group in dict.fromkeys(entry.group for entry in entries):
            mine = [entry for entry in entries if entry.group == group]
            held = mine[0].name if len(mine) == 1 else f"{len(mine)} datasets"
            silent = (
                "" if all(entry.robot.action_dim for entry in mine) else ", without actions: foresight only"
            )
            yield f"           {sum(e.weight for e in mine):6.1%} {group}: {held}{silent}"
        windows = zip(entries, self.recipe.windows, strict=True)
        for fps, m in sorted({(entry.fps or 0.0, window.offset_frames) for entry, window in windows}):
            yield self._durations(config, m, fps)
        yield (
            f"workers    {config.data.workers or 'none: the training process prepares batches'}; "
            f"{len(self.assignment.shards)} shards, {config.data.assignment} assignment"
        )

    def _describe_one(self, config: TrainingConfig) -> Iterator[str]:
        opened, robot = self.datasets.get(0), self.robots[0]
        fps = opened.source.fps
        held_out = 0 if opened.validation is None else len(opened.validation.episodes.unique())
        yield (
            f"data       {opened.source.num_episodes} episodes ({held_out} for validation), "
            f"{opened.source.num_frames:,} frames at {fps:g} fps, embodiment {robot.embodiment.name}"
        )
        yield self._durations(config, self.recipe.windows[0].offset_frames, fps)

    def _durations(self, config: TrainingConfig, offset: int, fps: float) -> str:
        """In frames and in seconds, at a rate."""
        chunk, rate = config.model.chunk_size, "" if len(self.mixture.entries) == 1 else f" at {fps:g} fps"
        seen = f"history and foresight  {offset} frames = {offset / fps:g} s{rate}"
        if config.model.generation is None:
            seen = f"no generation expert: neither history nor foresight{rate}"
        elif config.model.history == "present":
            seen += ", history replaced by the present"
        return f"{seen}; chunk {chunk} steps = {chunk / fps:g} s, {config.sampler.n_action_steps} of them executed"

    def _processors(self, tokenize: Tokenize) -> dict[str, Processor]:
        """Of every robot, all with as many camera slots as the robot that has most, so that shapes stay."""
        last = max(slot for robot in self.robots for slot, _ in robot.embodiment.present_cameras)
        made = {robot.embodiment.name: self.spec.processor(robot, tokenize) for robot in self.robots}
        return {name: replace(robot, slots=robot.slots or last + 1) for name, robot in made.items()}

    def _shares(self, count: int) -> Iterator[tuple[int, int]]:
        """(dataset, how many of `count` are its): in proportion to the weights, datasets without any left out."""
        edges = np.cumsum([0.0, *(entry.weight for entry in self.mixture.entries)])
        for number, part in enumerate(np.diff(np.round(edges / edges[-1] * count)).astype(int).tolist()):
            if part:
                yield number, part


def open_data(config: TrainingConfig, shards: int | None = None, ranks: int = 1) -> Data:
    """Find the datasets, count their statistics or read them, and, where wanted, decode their pictures.

    shards: of a run that is resumed; None: as configured, or as many as there are workers of all ranks.
    Raises DatasetError or ConfigError when data does not fit a robot or the model.
    """
    data, model = config.data, config.model
    mixture = resolve_mixture(data.mixture(config.embodiment)).require_data()
    windows = tuple(
        WindowConfig(model.chunk_size, model.offset(replace(entry.robot, fps=entry.fps)), model.view_size)
        for entry in mixture.entries
    )
    recipe = Recipe(
        entries=mixture.entries,
        windows=windows,
        processors={},
        frames=data.pictures,
        split=data.split,
        augmentation=data.augmentation,
        seed=config.train.seed,
        tolerant=data.skip_broken > 0,
    )
    assignment = assign(mixture, data, shards, ranks)
    _require_shared(assignment, config, ranks)
    _require_room(mixture, model)
    _require_lessons(mixture, config)
    robots = robots_of(mixture, data, model.chunk_size)
    acting = tuple(robot for robot in robots if robot.embodiment.action_dim)
    found = Data(
        mixture=mixture,
        robots=robots,
        spec=PolicySpec(model, acting, config.sampler),
        recipe=recipe,
        assignment=assignment,
    )
    if data.prepare and data.frames == "cache":
        _prepare(found)
    return found


def assign(mixture: Mixture, data: DataConfig, shards: int | None = None, ranks: int = 1) -> Assignment:
    """Which shard draws what. Memory per worker is balanced by what open datasets cost."""
    names = [entry.name for entry in mixture.entries]
    weights = [entry.weight for entry in mixture.entries]
    count = data.shards or shards or max(1, data.workers) * ranks
    if data.assignment == "lpt":
        return assign_lpt([entry.frames for entry in mixture.entries], weights, names, count)
    bodies = [entry.embodiment for entry in mixture.entries]
    numbers = [_DECLARED if body is None else body.state_dim + body.action_dim for body in bodies]
    costs = [
        _DATASET_COST + (_FRAME_COST + 4 * width) * entry.frames
        for entry, width in zip(mixture.entries, numbers, strict=True)
    ]
    return assign_exact(weights, costs, names, count)


def _require_shared(assignment: Assignment, config: TrainingConfig, ranks: int) -> None:
    """Raise ConfigError unless workers can share the shards, and shards the batch; warn of datasets opened by turns."""
    shards, most = len(assignment.shards), config.data.most_open
    workers = max(1, config.data.workers) * ranks
    position_shards(0, np.arange(0), config.train.batch_size, shards)
    held = max(len(assignment.datasets_of(shards_of(worker, workers, shards))) for worker in range(workers))
    if held > most:
        console.print(
            f"a data worker draws from up to {held} datasets, of which data.most_open={most} are open at a time: raise "
            "it, or data.workers, unless memory forbids.",
            style="yellow",
        )


def _require_room(mixture: Mixture, model: ModelConfig) -> None:
    """Raise ConfigError for the first robot that the model is too narrow for."""
    for body in mixture.embodiments:
        for what, needed, key in (
            ("camera slots", len(body.cameras), "num_views"),
            ("state dimensions", body.state_dim, "max_state_dim"),
            ("action dimensions", body.action_dim, "max_action_dim"),
        ):
            if needed > getattr(model, key):
                raise ConfigError(
                    f"embodiment {body.name!r} has {needed} {what}, the model {getattr(model, key)}; "
                    f"set model.{key}={needed}, or choose a preset of conf/model/ that has room."
                )


def _require_lessons(mixture: Mixture, config: TrainingConfig) -> None:
    """Raise ConfigError for datasets that teach nothing: without actions, where no foresight loss trains either."""
    why, instead = "the model has no generation expert", "train one that has (model.generation, foresight)"
    if config.model.generation is not None:
        why, instead = "train.foresight_weight is 0", "raise it"
        if config.train.foresight_weight:
            return
    silent = [entry.name for entry in mixture.entries if not entry.robot.action_dim]
    if silent:
        more = f" and {len(silent) - _NAMED} more" if len(silent) > _NAMED else ""
        raise ConfigError(
            f"nothing can be learned from {', '.join(silent[:_NAMED])}{more}: no actions, and no foresight loss, for "
            f"{why}. Leave them out (~data.groups.<name>, or data.datasets with skip: true), or {instead}."
        )


def _prepare(data: Data) -> None:
    """Decode all pictures now, with a progress bar, instead of when they are first drawn."""
    with progress("frames") as advance:
        for number in range(len(data.mixture.entries)):
            try:
                data.recipe.open(number, advance)
            except DatasetError:
                if not data.recipe.tolerant:  # else the stream counts and names it
                    raise


def encoded(data: Data, config: TrainingConfig, model: VlaMotModel, device: str) -> Data:
    """The same data with the latents of all pictures, where they are wanted; those that are absent are encoded now.

    model: with the weights of its tokenizer as they will stay. device: on which it encodes.
    """
    if config.data.latents is None:
        return data
    folder = None if config.data.cache is None else config.data.cache / "latents"
    latents = LatentsConfig(_tokenizer_key(model), config.data.latents, folder, config.data.cache_limit_gib)
    found = replace(data, recipe=replace(data.recipe, latents=latents))
    model.required_tokenizer().to(device)

    def encode(pictures: Tensor) -> Tensor:
        return model.encode_frames(pictures.to(device)[:, None, None])[:, 0, 0]

    with progress("latents") as advance:
        for number in range(len(data.mixture.entries)):
            try:
                found.recipe.open(number, advance, encode)
            except NoRoomError:  # no fault of the dataset, which must not be left out for it
                raise
            except DatasetError:
                if not data.recipe.tolerant:
                    raise
    return found


def _tokenizer_key(model: VlaMotModel) -> str:
    """Hash of the foresight tokenizer's configuration and weights."""
    digest = hashlib.blake2b(
        json.dumps(dict(model.config.foresight or {}), sort_keys=True).encode(), digest_size=16
    )
    for name, tensor in sorted(model.required_tokenizer().state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def spread(values: Tensor, count: int) -> Tensor:
    """At most `count` of the values, evenly spread."""
    if len(values) <= count:
        return values
    return values[torch.linspace(0, len(values) - 1, count).round().long()]


def spread_rows(dataset: WindowDataset, count: int) -> Tensor:
    """At most `count` rows of a dataset, evenly spread over its episodes."""
    return spread(torch.arange(len(dataset)), count)


def require_same_data(folder: Path, facts: dict[str, Any] | None, data: Data) -> None:
    """Raise CheckpointError when a run that is to be resumed was trained on other data, or drew it otherwise."""
    known = facts or {}
    if known.get("dataset") not in (None, data.identity):
        places = ", ".join(str(entry.root) for entry in data.mixture.entries[:3])
        raise CheckpointError(
            f"{folder} was trained on other data than {places} holds now; resume with the same dataset, or "
            "start a new run with init_from=…."
        )
    if known.get("robots") not in (None, data.robots_digest):
        raise CheckpointError(
            f"{folder} was trained with other descriptions or statistics of {', '.join(map(str, data.robots))} than "
            "are given now. Put the embodiment files and data.statistics back, or start a new run with init_from=…."
        )
    if known.get("assignment") not in (None, data.assignment.digest):
        raise CheckpointError(
            f"{folder} drew its samples in another order: it had {known.get('shards')} shards, now there are "
            f"{len(data.assignment.shards)}, or their contents differ. Resume with data.shards={known.get('shards')} "
            "and the same data.assignment, or start a new run with init_from=…."
        )
