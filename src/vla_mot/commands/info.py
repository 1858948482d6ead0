"""`vla-mot info`: what a checkpoint is, without running it."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.table import Table
from rich.text import Text

from vla_mot.commands import folders
from vla_mot.commands.console import console
from vla_mot.commands.settings import section
from vla_mot.hub.native import WEIGHTS_FILE, PolicySpec, read_spec, read_tensors
from vla_mot.robots.embodiment import Field


@dataclass(frozen=True)
class InfoConfig:
    """See conf/info.yaml."""

    checkpoint: Path


def run(config: dict[str, Any], overrides: list[str]) -> None:
    """The command."""
    folder = folders.find_policy(section(InfoConfig, "", config).checkpoint)
    spec = read_spec(folder)
    tensors = read_tensors(folder / WEIGHTS_FILE)
    table = Table.grid(padding=(0, 3, 0, 0))
    for name, value in facts(spec).items():
        table.add_row(Text(name, style="cyan"), Text(value))
    weights = sum(tensor.numel() for tensor in tensors.values())
    table.add_row(Text("weights", style="cyan"), f"{weights:,} numbers in {len(tensors)} tensors")
    console.print(Text(str(folder), style="bold"))
    console.print(table)


def facts(spec: PolicySpec) -> dict[str, str]:
    """What a policy was made for, name → text."""
    model, robot, fps = spec.model, spec.embodiment, spec.embodiment.fps
    return {
        "embodiment": f"{robot.name} at {fps:g} Hz",
        "cameras": ", ".join(f"{slot}: {key or 'absent'}" for slot, key in enumerate(robot.cameras)),
        "state": ", ".join(_dimensions(field) for field in robot.state),
        "action": ", ".join(_dimensions(field) for field in robot.action),
        "action mode": spec.action_mode,
        "chunk": f"{model.chunk_size} steps = {model.chunk_size / fps:g} s, "
        f"{spec.sampler.n_action_steps} executed, {spec.sampler.num_steps} denoising steps",
        "foresight": f"{model.offset_frames} frames = {model.offset_frames / fps:g} s back and ahead, "
        f"tokenizer {model.foresight['type']}",
        "backbone": f"{model.backbone['type']}, hidden {model.backbone.get('hidden_size', 'default')}",
        "experts": f"generation {model.generation.hidden_size}, action {model.action.hidden_size}",
        "views": f"{model.num_views} slots of {model.view_size[1]}×{model.view_size[0]} pixels",
        "statistics": f"from {spec.statistics.state.count:,} frames",
    }


def _dimensions(field: Field) -> str:
    parts = (
        f"{name} [{unit}{', delta' if delta else ''}]"
        for name, unit, delta in zip(field.names, field.units, field.delta, strict=True)
    )
    return f"{field.key}: {' '.join(parts)}"
