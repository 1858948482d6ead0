"""`vla-mot info`: what a checkpoint is, without running it."""

from dataclasses import dataclass
from typing import Any

from rich.table import Table
from rich.text import Text

from vla_mot.commands.console import console, show_library_log
from vla_mot.commands.opening import Opening
from vla_mot.commands.settings import section
from vla_mot.hub.card import lasting
from vla_mot.hub.checkpoint import Checkpoint
from vla_mot.hub.describe import architecture, dimensions, foresight, sampling
from vla_mot.hub.remote import origin
from vla_mot.robots.actions import DELTA
from vla_mot.robots.robot import Robot


@dataclass(frozen=True)
class InfoConfig(Opening):
    """See conf/info.yaml."""


def run(config: dict[str, Any], overrides: list[str]) -> None:
    """The command."""
    show_library_log()
    found = section(InfoConfig, "", config).open()
    table = Table.grid(padding=(0, 3, 0, 0))
    for name, value in facts(found).items():
        table.add_row(Text(name, style="cyan"), Text(value))
    console.print(Text(str(found.folder), style="bold"))
    console.print(table)


def facts(checkpoint: Checkpoint) -> dict[str, str]:
    """What a policy was made for, name → text."""
    spec, weights = checkpoint.spec, checkpoint.weights
    numbers = sum(info.bytes // info.dtype.itemsize for info in weights.infos.values())
    dtypes = sorted({str(info.dtype).removeprefix("torch.") for info in weights.infos.values()})
    listed = {"layout": _layout(checkpoint)}
    if source := origin(checkpoint.folder):
        listed["from"] = f"{source.repo_id} at {source.commit}"
    rate = spec.robots[0].embodiment.fps if len(spec.robots) == 1 else None
    listed |= architecture(spec.model)
    listed["chunk"] = lasting(spec.model.chunk_size, "steps", rate)
    listed["foresight"] = foresight(spec.model, rate)
    listed["sampler"] = sampling(spec.sampler)
    listed["weights"] = f"{numbers:,} numbers in {len(weights.infos)} tensors, {', '.join(dtypes)}"
    for robot in spec.robots:
        listed |= {f"{robot}: {name}": text for name, text in _robot(robot).items()}
    if not spec.robots:
        listed["robots"] = (
            "none: there are no statistics, so it cannot act; it can be converted and trained on"
        )
    return listed


def _layout(checkpoint: Checkpoint) -> str:
    if checkpoint.layout == "native":
        return "vla_mot" + (", converted from the authors'" if checkpoint.spec.released else "")
    return f"the authors' {checkpoint.layout}"


def _robot(robot: Robot) -> dict[str, str]:
    body, delta = robot.embodiment, robot.action_mode == DELTA
    return {
        "rate": f"{body.fps:g} Hz" if body.fps else "its dataset's",
        "cameras": ", ".join(f"{slot}: {key or 'absent'}" for slot, key in enumerate(body.cameras)),
        "state": ", ".join(f"{field.key}: {dimensions(field)}" for field in body.state),
        "action": ", ".join(f"{field.key}: {dimensions(field, delta=delta)}" for field in body.action),
        "statistics": f"from {robot.statistics.state.count:,} frames",
    }
