"""Whether a checkpoint is whole, and whether this machine's pipeline still answers as it did when it was written."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch

from vla_mot.errors import CheckpointError, ConfigError
from vla_mot.hub.checkpoint import Checkpoint
from vla_mot.hub.manifest import MANIFEST_FILE, compare
from vla_mot.hub.native import GOLDEN_FILE
from vla_mot.hub.tensors import Weights
from vla_mot.infer.golden import Deviation, replay_golden
from vla_mot.infer.policy import Policy
from vla_mot.robots.normalization import FeatureStatistics
from vla_mot.robots.robot import Robot

TOLERANCE = {torch.float32: 1e-3, torch.bfloat16: 0.1}
"""Largest difference of a replayed golden answer that still passes, in normalized units, by the weights' dtype."""


@dataclass(frozen=True)
class Check:
    """One thing that was looked at. passed: None when there was nothing to look at."""

    name: str
    passed: bool | None
    text: str


def verify(checkpoint: Checkpoint, device: torch.device | str = "cpu") -> Iterator[Check]:
    """Check hashes, weights, statistics and the golden answer, in that order; the weights are loaded once."""
    yield _hashes(checkpoint)
    try:
        model = checkpoint.load(device=device)
    except (CheckpointError, ConfigError) as error:
        yield Check("weights", False, str(error))
        return
    infos = checkpoint.weights.infos
    bad = [name for name, tensor in model.state_dict().items() if not bool(torch.isfinite(tensor).all())]
    yield Check(
        "weights",
        not bad,
        f"not finite: {', '.join(bad[:6])}" if bad else f"{len(infos)} tensors fit the model and are finite",
    )
    for robot in checkpoint.spec.robots:
        yield _statistics(robot)
    yield _golden(checkpoint, Policy(model, checkpoint.spec))


def _hashes(checkpoint: Checkpoint) -> Check:
    if not (checkpoint.folder / MANIFEST_FILE).is_file():
        if checkpoint.layout == "native":
            return Check(
                "files", False, f"no {MANIFEST_FILE}: nothing says that the files are those that were written"
            )
        return Check("files", None, f"no {MANIFEST_FILE}: this layout holds no hashes to compare")
    try:
        problems = compare(checkpoint.folder)
    except CheckpointError as error:
        problems = [str(error)]
    return Check("files", not problems, "; ".join(problems) or "every file has the SHA-256 that was recorded")


def _statistics(robot: Robot) -> Check:
    told, body = robot.statistics, robot.embodiment
    problems: list[str] = []
    constant: list[str] = []
    for what, numbers, fields in (("state", told.state, body.state), ("action", told.action, body.action)):
        names = [f"{what} {name}" for part in fields for name in part.names]
        still = [name for name, same in zip(names, numbers.max <= numbers.min, strict=True) if same]
        problems += _unlikely(what, numbers)
        if names and still == names:
            problems.append(f"every dimension of the {what} is constant")
        constant += still
    fine = "finite and ordered; " + (
        f"constant in the data: {', '.join(constant)}" if constant else "none is constant"
    )
    return Check(f"statistics of {robot}", not problems, "; ".join(problems) or fine)


def _unlikely(what: str, numbers: FeatureStatistics) -> Iterator[str]:
    """What no data could have given. A dimension that never moves is possible: a joint that a task does not need."""
    for name in ("mean", "std", "min", "max"):
        if not bool(torch.isfinite(getattr(numbers, name)).all()):
            yield f"{what}.{name} is not finite"
            return
    slack = 1e-4 * (numbers.max - numbers.min).abs() + 1e-6
    for dim in (
        (~((numbers.min <= numbers.mean + slack) & (numbers.mean <= numbers.max + slack))).nonzero().flatten()
    ):
        yield f"{what}[{int(dim)}]: the mean lies outside [min, max]"
    for dim in (numbers.std < 0).nonzero().flatten():
        yield f"{what}[{int(dim)}]: the deviation is negative"


def _golden(checkpoint: Checkpoint, policy: Policy) -> Check:
    file = checkpoint.folder / GOLDEN_FILE
    if not file.is_file():
        passed = False if checkpoint.layout == "native" else None
        return Check("golden answer", passed, f"no {GOLDEN_FILE}: convert the checkpoint to record one")
    linear = {p.dtype for p in policy.model.stack.parameters() if p.dim() > 1}
    bound = max(TOLERANCE.get(dtype, TOLERANCE[torch.bfloat16]) for dtype in linear)
    try:
        found = replay_golden(policy, Weights.open(file).read())
    except (ValueError, RuntimeError, LookupError) as error:  # whatever a made-up recording leads to
        return Check("golden answer", False, f"{file.name} cannot be replayed: {error}")
    within = all(d.actions <= bound and (d.foresight is None or d.foresight <= bound) for d in found)
    texts = "; ".join(map(_told, found))
    return Check("golden answer", within, f"{texts} (allowed: {bound:g} normalized units)")


def _told(found: Deviation) -> str:
    foresight = "" if found.foresight is None else f", foresight by {found.foresight:.1e}"
    return f"{found.robot}: actions differ by {found.actions:.1e}{foresight}"
