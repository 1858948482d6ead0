"""What a checkpoint says about itself for its model card: `CardFacts` from the policy, its manifest and its training.

What they do not say is left out. What only the user knows (the licence, limitations, ids of data sets on the Hub) is
handed in.
"""

from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

from vla_mot.errors import ConfigError, unknown_name
from vla_mot.hub.card import CardFacts, Figure, RobotFacts
from vla_mot.hub.checkpoint import Checkpoint
from vla_mot.hub.describe import architecture, dimensions, foresight
from vla_mot.hub.files import read_json
from vla_mot.hub.manifest import MANIFEST_FILE, read_manifest
from vla_mot.hub.native import TRAINING_FILE
from vla_mot.hub.spec import PolicySpec
from vla_mot.robots.actions import DELTA
from vla_mot.robots.robot import Robot

_GROUPS = ("train", "data", "backbone")
_RECIPE = ("batch_size", "lr", "optimizer", "foresight_weight", "seed")  # of the run's `train` group


def checkpoint_facts(
    checkpoint: Checkpoint, repo_id: str, *, license: str, steps: int | None = None, **told: Any
) -> CardFacts:
    """What a checkpoint folder says: its spec, its versions and its `training.json`.

    steps: optimizer steps behind the weights, where they are known. told: see `card_facts`.
    """
    folder, infos = checkpoint.folder, checkpoint.weights.infos.values()
    found: dict[str, Any] = {}
    if (folder / TRAINING_FILE).is_file():
        found = _training(read_json(folder / TRAINING_FILE), checkpoint.spec, steps)
    if (folder / MANIFEST_FILE).is_file():
        found["versions"] = read_manifest(folder).versions
    numbers = sum(info.bytes // info.dtype.itemsize for info in infos)
    return card_facts(checkpoint.spec, repo_id, license=license, numbers=numbers, **found | told)


def card_facts(
    spec: PolicySpec, repo_id: str, *, license: str, numbers: int | None = None, **told: Any
) -> CardFacts:
    """What a policy says about itself.

    license: of the weights, as the Hub spells it. numbers: how many the weights are. told: further fields of
    `CardFacts`, such as notes, datasets, success or license_name; they replace what is found.
    Raises ConfigError for a field that a card does not have, a licence that is none, or a policy without a robot.
    """
    known = [field.name for field in fields(CardFacts)]
    for name in told:
        if name not in known:
            raise ConfigError(unknown_name("part of a model card", name, known))
    rates = {robot.embodiment.fps for robot in spec.robots}
    found: dict[str, Any] = {
        "title": repo_id.split("/")[-1],
        "robots": tuple(_robot(robot) for robot in spec.robots),
        "chunk_size": spec.model.chunk_size,
        "n_action_steps": spec.sampler.n_action_steps,
        "num_steps": spec.sampler.num_steps,
        "foresight": foresight(spec.model, rates.pop() if len(rates) == 1 else None),
        "architecture": _architecture(spec, numbers),
    }
    return CardFacts(license=license, repo_id=repo_id, **found | told)


def _robot(robot: Robot) -> RobotFacts:
    body, relative = robot.embodiment, robot.action_mode == DELTA
    return RobotFacts(
        name=body.name,
        fps=body.fps,
        cameras=tuple(key for _, key in body.present_cameras),
        state=", ".join(dimensions(field) for field in body.state),
        action=", ".join(dimensions(field, delta=relative) for field in body.action),
        action_mode=robot.action_mode,
    )


def _architecture(spec: PolicySpec, numbers: int | None) -> dict[str, Figure]:
    listed: dict[str, Figure] = dict(architecture(spec.model))
    if numbers is not None:
        listed["weights"] = (
            f"{numbers:,} numbers, {'of several dtypes' if spec.dtype == 'mixed' else spec.dtype}"
        )
    if (tokenizer := spec.model.backbone.get("tokenizer")) is not None:
        listed["tokenizer of instructions"] = str(tokenizer)
    if spec.released is not None:
        listed["converted from"] = f"the authors' layout, {spec.released.config['type']}"
    return listed


def _training(config: Mapping[str, Any], spec: PolicySpec, steps: int | None) -> dict[str, Any]:
    """The fields `dataset` and `training` of a card, from the resolved configuration of a run."""
    groups = {name: group if isinstance(group := config.get(name), Mapping) else {} for name in _GROUPS}
    train, data = groups["train"], groups["data"]
    listed: dict[str, Figure] = {}
    if steps is not None:
        asked = train.get("steps", steps)
        listed["steps"] = steps if asked == steps else f"{steps:,} of {asked:,}"
    for name in _RECIPE:
        if isinstance(value := train.get(name), str | int | float):
            listed[name.replace("_", " ")] = value
    if weights := groups["backbone"].get("weights"):
        listed["backbone started from"] = _last_name(weights)
    if start := config.get("init_from"):
        listed["policy started from"] = _last_name(start)
    return {"training": listed, "dataset": _dataset(data, spec)}


def _dataset(data: Mapping[str, Any], spec: PolicySpec) -> str | None:
    """The data set's name: folders above it are the author's own business."""
    name = data.get("repo_id") or (Path(data["root"]).name if data.get("root") else None)
    if name is None:
        return None
    frames = {robot.statistics.state.count for robot in spec.robots}
    return f"{name}, {frames.pop():,} training frames" if len(frames) == 1 else str(name)


def _last_name(place: object) -> str:
    """A Hub repository as it is; of a folder the last part, so that no path of a machine is published."""
    path = Path(str(place))
    return str(place) if not path.is_absolute() and len(path.parts) == 2 else path.name
