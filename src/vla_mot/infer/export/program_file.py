"""`program.json`: everything about exported programs but the programs.

    format, device, dtype, batch, pixels, latents, opset    how they were written
    stages        name → file, and name, shape and dtype of what goes in and comes out; null: any batch size
    sampler       steps, solver, how many steps of a chunk are executed, in how many action dimensions there is noise
    robot         cameras, state, action, and the numbers that normalize them: for readers without this library
    backbone      options of the text: tokenizer, length, padding
    policy        `config.json` and `stats.json` of a policy that knows this robot alone
    versions      of what wrote it

Beside it: the programs, `golden.safetensors`, the tokenizer where it came from a folder, and `manifest.json` with the
hash of every file (`vla_mot.hub.manifest`).
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

from vla_mot.errors import CheckpointError, ConfigError
from vla_mot.hub.files import read_json, write_json
from vla_mot.hub.manifest import versions
from vla_mot.hub.spec import PolicySpec
from vla_mot.hub.tokenizer_files import placed, portable
from vla_mot.infer.export.formats import OPSET, Format
from vla_mot.options import section
from vla_mot.robots.normalization import EPS, FeatureStatistics
from vla_mot.robots.robot import Robot

PROGRAM_FILE, GOLDEN_FILE, VERSION = "program.json", "golden.safetensors", 1
Pixels = Literal["uint8", "float32"]


@dataclass(frozen=True)
class TensorFacts:
    """What a program takes or gives. shape: null where any batch size fits. dtype: as torch and numpy call it."""

    name: str
    shape: tuple[int | None, ...]
    dtype: str


@dataclass(frozen=True)
class StageFacts:
    """One program."""

    file: str
    inputs: tuple[TensorFacts, ...]
    outputs: tuple[TensorFacts, ...]


@dataclass(frozen=True)
class Written:
    """How programs were written. See `ExportOptions`; device, dtype: of the weights. opset: of ONNX."""

    format: Format
    device: str
    dtype: str
    batch: int | None
    pixels: Pixels
    latents: bool
    opset: int | None = None


@dataclass(frozen=True)
class ProgramFile:
    """The content of `program.json`."""

    written: Written
    stages: Mapping[str, StageFacts]
    spec: PolicySpec

    @property
    def noise_dims(self) -> int:
        """The first action dimensions, in which there is noise; the others are 0 from the start."""
        model = self.spec.model
        return self.spec.robots[0].embodiment.action_dim if model.mask_padding else model.max_action_dim


def write_program_file(folder: Path, facts: ProgramFile, backbone: Mapping[str, Any]) -> None:
    """backbone: options of the backbone, complete."""
    (robot,), config = facts.spec.robots, facts.spec.config_dict()
    write_json(
        folder / PROGRAM_FILE,
        {
            "version": VERSION,
            "written": asdict(facts.written),
            "stages": {name: asdict(stage) for name, stage in facts.stages.items()},
            "sampler": asdict(facts.spec.sampler) | {"noise_dims": facts.noise_dims},
            "robot": _robot(robot),
            "backbone": dict(backbone),
            "policy": {
                "config": config | {"model": portable(config["model"])},
                "statistics": facts.spec.statistics_dict(),
            },
            "versions": versions() | _onnx_versions(facts.written.format),
        },
    )


def read_program_file(folder: Path) -> ProgramFile:
    """Raises CheckpointError when it is missing, damaged, or of a later version."""
    path = folder / PROGRAM_FILE
    if not path.is_file():
        raise CheckpointError(
            f"{folder} holds no {PROGRAM_FILE}: it is no folder that `vla-mot export` wrote."
        )
    content = read_json(path)
    if content.get("version") != VERSION:
        raise CheckpointError(
            f"{path} is of version {content.get('version')!r}, this vla_mot reads {VERSION}; install a newer vla_mot."
        )
    try:
        policy = content["policy"]
        config = policy["config"] | {"model": placed(folder, policy["config"]["model"])}
        stages = {
            name: section(StageFacts, f"stages.{name}", told) for name, told in content["stages"].items()
        }
        outside = [stage.file for stage in stages.values() if Path(stage.file).name != stage.file]
        if outside:
            raise ConfigError(f"stages point outside the folder: {', '.join(outside)}")
        return ProgramFile(
            written=section(Written, "written", content["written"]),
            stages=stages,
            spec=PolicySpec.from_dicts(config, policy["statistics"]),
        )
    except (ConfigError, TypeError, ValueError, LookupError, AttributeError, ArithmeticError) as error:
        raise CheckpointError(f"{path} is damaged ({error}); export the policy again.") from error


def opset_of(format: Format) -> int | None:
    """The operator set that programs of this format are written in."""
    return OPSET if format == "onnx" else None


def _robot(robot: Robot) -> dict[str, Any]:
    body, numbers = robot.embodiment, robot.statistics
    return {
        "embodiment": body.name,
        "action_mode": robot.action_mode,
        "fps": body.fps,
        "cameras": {str(slot): key for slot, key in body.present_cameras},
        "state": [name for field in body.state for name in field.names],
        "action": [name for field in body.action for name in field.names],
        "relative_to_state": list(body.delta_mask) if robot.action_mode == "delta" else None,
        "normalization": {
            "rule": "normalized = (physical - mean) / (std + eps); a relative dimension is first less the state's",
            "eps": EPS,
            "state": _numbers(numbers.state),
            "action": _numbers(numbers.action),
        },
    }


def _numbers(feature: FeatureStatistics) -> dict[str, list[float]]:
    return {"mean": feature.mean.tolist(), "std": feature.std.tolist()}


def _onnx_versions(format: Format) -> dict[str, str]:
    return {name: version(name) for name in ("onnx", "onnxscript")} if format == "onnx" else {}
