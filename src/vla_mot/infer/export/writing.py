"""Writes the programs of a policy into a folder, with all that is needed to run them."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from vla_mot.errors import ConfigError
from vla_mot.hub.manifest import write_manifest
from vla_mot.hub.tensors import shortened, write_tensors
from vla_mot.hub.tokenizer_files import save_tokenizer
from vla_mot.infer.export.capture import batch_axis, capture
from vla_mot.infer.export.formats import SUFFIXES, Format, require_writable, write_program
from vla_mot.infer.export.golden import record, results
from vla_mot.infer.export.program_file import (
    GOLDEN_FILE,
    Pixels,
    ProgramFile,
    StageFacts,
    TensorFacts,
    Written,
    opset_of,
    write_program_file,
)
from vla_mot.infer.export.stages import Denoise, Encode, Flow, Prefill, Sample, Stage, StageName
from vla_mot.infer.policy import Policy
from vla_mot.model.model import VlaMotModel
from vla_mot.options import at_least

_TRACED = 2  # rows of an example for any batch size: torch takes one for a constant


@dataclass(frozen=True)
class ExportOptions:
    """format: see `vla_mot.infer.export.formats`. stages: what is written, see `vla_mot.infer.export.stages`.

    batch: robots at once; None: any number. pixels: what images hold: uint8 [0, 255] or float32 [0, 1], which a
    camera's pictures are after resizing. latents: prefill and sample take the frames' latents, and *encode* is written
    beside them. external_data: ONNX weights in a file of their own; None: where they are larger than 2 GB.
    """

    format: Format = "torch_export"
    stages: tuple[StageName, ...] = ("prefill", "denoise")
    batch: int | None = 1
    pixels: Pixels = "uint8"
    latents: bool = False
    external_data: bool | None = None

    def __post_init__(self) -> None:
        at_least(1, {"batch": 1 if self.batch is None else self.batch})
        names = self.stages
        if not names or len(set(names)) < len(names):
            raise ConfigError(f"stages must name programs, each once; got {list(names)}.")
        if ("prefill" in names) != ("denoise" in names):
            raise ConfigError(f"prefill and denoise only work together; stages is {list(names)}.")
        if self.external_data is not None and self.format != "onnx":
            raise ConfigError(f"external_data is for format=onnx alone; format is {self.format}.")

    @property
    def written(self) -> tuple[StageName, ...]:
        """The stages, with what they need."""
        return ("encode", *self.stages) if self.latents and "encode" not in self.stages else self.stages


def export_policy(policy: Policy, folder: Path, options: ExportOptions) -> ProgramFile:
    """Write programs, `program.json`, the golden answers and hashes into a folder that is empty or not there yet.

    The policy drives the robot that was chosen; its weights keep their dtype and device, which become the programs'.
    Raises ConfigError for a policy whose robot is not chosen, for a folder that holds something, where a package is
    missing, for what the format cannot hold, and for latents of a model that encodes no frames.
    """
    robot = policy.robot
    require_writable(options.format)
    if options.format == "onnx":
        _require_float32(policy.model)
    if "encode" in options.written:
        policy.model.required_tokenizer()
    folder.mkdir(parents=True, exist_ok=True)
    if held := sorted(path.name for path in folder.iterdir()):
        raise ConfigError(
            f"{folder} is not empty (it holds {', '.join(held[:4])}); programs need a folder of their own."
        )
    facts = ProgramFile(_written(policy, options), {}, replace(policy.spec, robots=(robot,), released=None))
    rows = options.batch or _TRACED
    named, golden = record(policy, rows, pixels=options.pixels, latents=options.latents)
    stages: dict[str, StageFacts] = {}
    for stage_name, stage in _stages(policy.model, facts, options, named).items():
        named = stage.named(named) | named
        stages[stage_name] = _write(stage_name, stage, named, folder, options)
    kept = {fact.name for told in stages.values() for fact in (*told.inputs, *told.outputs)}
    recorded = golden | {name: tensor for name, tensor in named.items() if name in kept}
    write_tensors(folder / GOLDEN_FILE, results(recorded))
    save_tokenizer(folder, facts.spec.config_dict()["model"])
    facts = replace(facts, stages=stages)
    write_program_file(folder, facts, asdict(policy.model.understanding.config))
    write_manifest(folder)
    return facts


def widen(model: VlaMotModel) -> list[str]:
    """Make every weight float32, the foresight tokenizer's too, in place; returns the names of those that were not."""
    narrow = [name for name, p in model.named_parameters() if p.dtype != torch.float32]
    for weight in model.parameters():
        weight.data = weight.data.float()
    return narrow


def _stages(
    model: VlaMotModel, facts: ProgramFile, options: ExportOptions, given: Mapping[str, Tensor]
) -> dict[StageName, Stage]:
    """What is exported, in an order in which each can read the results of those before it."""
    sampler, prefill = facts.spec.sampler, Prefill(model, options.latents)
    flow = Flow(sampler.num_steps, sampler.solver, facts.spec.robots[0].embodiment.action_dim)
    made: dict[StageName, Stage] = {
        "encode": Encode(model),
        "prefill": prefill,
        "denoise": Denoise(model, prefill.layout(given), facts.noise_dims),
        "sample": Sample(model, flow, options.latents),
    }
    return {name: stage for name, stage in made.items() if name in options.written}


def _write(
    name: StageName, stage: Stage, named: Mapping[str, Tensor], folder: Path, options: ExportOptions
) -> StageFacts:
    """One program, and what it is."""
    file = name + SUFFIXES[options.format]
    program = capture(stage, named, any_batch=options.batch is None)
    write_program(options.format, program, stage, folder / file, external_data=options.external_data)

    def told(names: tuple[str, ...]) -> tuple[TensorFacts, ...]:
        return tuple(_facts(name, named[name], any_batch=options.batch is None) for name in names)

    return StageFacts(file, told(stage.inputs), told(stage.outputs))


def _facts(name: str, tensor: Tensor, *, any_batch: bool) -> TensorFacts:
    shape: list[int | None] = list(tensor.shape)
    if any_batch:
        shape[batch_axis(name)] = None
    return TensorFacts(name, tuple(shape), str(tensor.dtype).removeprefix("torch."))


def _written(policy: Policy, options: ExportOptions) -> Written:
    return Written(
        format=options.format,
        device="cpu" if options.format == "onnx" else str(policy.device),
        dtype=str(policy.model.stack.dtype).removeprefix("torch."),
        batch=options.batch,
        pixels=options.pixels,
        latents=options.latents,
        opset=opset_of(options.format),
    )


def _require_float32(model: VlaMotModel) -> None:
    narrow = [f"{name} is {p.dtype}" for name, p in model.named_parameters() if p.dtype != torch.float32]
    if narrow:
        raise ConfigError(
            f"ONNX programs are written in float32, which runtimes on CPUs and numpy know, but {shortened(narrow, 3)}. "
            "Open it with dtype=torch.float32, and vla_mot.infer.export.widen(policy.model) if its tokenizer is narrow."
        )
