"""`vla-mot export`: a policy as programs that run without this library."""

import logging
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch

from vla_mot.commands import folders
from vla_mot.commands.console import console, show_library_log
from vla_mot.commands.devices import require_device
from vla_mot.commands.opening import Opening
from vla_mot.commands.settings import section
from vla_mot.errors import CheckpointError, ConfigError
from vla_mot.flow.solvers import Solver
from vla_mot.hub.dtypes import dtype_name
from vla_mot.hub.manifest import identity
from vla_mot.hub.tensors import Weights
from vla_mot.infer.export import ExportedPolicy, ExportOptions, export_policy, widen
from vla_mot.infer.export.formats import Format, can_open, require_writable
from vla_mot.infer.export.golden import replay
from vla_mot.infer.export.program_file import GOLDEN_FILE, Pixels
from vla_mot.infer.export.stages import PREFIX, StageName
from vla_mot.infer.policy import Policy
from vla_mot.infer.verify import TOLERANCE

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class ExportConfig(Opening):
    """See conf/export.yaml."""

    output: Path
    format: Format = "torch_export"
    stages: tuple[StageName, ...] = ("prefill", "denoise")
    batch: int | None = 1
    device: str = "cpu"
    dtype: Literal["float32", "bfloat16"] | None = None
    pixels: Pixels = "uint8"
    latents: bool = False
    external_data: bool | None = None
    robot: str | None = None
    check: bool = True
    num_steps: int | None = None
    solver: Solver | None = None

    def __post_init__(self) -> None:
        require_device("device", self.device)
        require_writable(self.format)
        if self.format == "onnx" and self.dtype == "bfloat16":
            raise ConfigError(
                "format=onnx is written in float32, which every runtime and numpy know; leave dtype out."
            )
        _ = self.options  # checked before anything is opened

    @property
    def options(self) -> ExportOptions:
        """What the library is asked for."""
        names = ("format", "stages", "batch", "pixels", "latents", "external_data")
        return ExportOptions(**{name: getattr(self, name) for name in names})


def run(config: dict[str, Any], overrides: list[str]) -> None:
    """The command. What is written appears under `output` when it is whole and answers as the policy does."""
    show_library_log()
    wanted = section(ExportConfig, "", config)
    folders.require_unused(wanted.output)
    policy = _opened(wanted)
    with folders.whole(wanted.output) as folder:
        facts = export_policy(policy, folder, wanted.options)
        found = _checked(folder, policy, wanted)
    console.print(f"{wanted.checkpoint}, robot {policy.robot} → {wanted.output} ({wanted.format})")
    for stage in facts.stages.values():
        size = sum(path.stat().st_size for path in wanted.output.glob(f"{stage.file}*"))
        console.print(f"  {stage.file}: {size / 1e6:,.1f} MB")
    for name, deviation in found.items():
        console.print(f"  {name}: differs by {deviation:.1e} from the policy")
    console.print(f"  SHA-256 of the manifest: {identity(wanted.output)}")


def _opened(wanted: ExportConfig) -> Policy:
    """The policy on its robot, in the dtype that the format takes."""
    found = wanted.open()
    robot = found.spec.robot(wanted.robot, wanted.action_mode)
    name = "float32" if wanted.format == "onnx" and wanted.dtype is None else wanted.dtype
    dtype = getattr(torch, name) if name else None
    model = found.load(device=wanted.device, dtype=dtype)
    if wanted.format == "onnx" and (narrow := widen(model)):
        log.warning(
            "%d weights are exported in float32, not in the checkpoint's bfloat16 (%s, …), which ONNX runtimes on CPUs "
            "lack: answers differ a little from the policy's own, see docs/export.md",
            len(narrow),
            narrow[0],
        )
    spec = replace(found.spec, dtype=dtype_name(dtype)) if dtype else found.spec
    policy = Policy(model, spec, robot)
    return policy.with_sampler(num_steps=wanted.num_steps, solver=wanted.solver)


def _checked(folder: Path, policy: Policy, wanted: ExportConfig) -> dict[str, float]:
    """How far the programs' answers are from the golden ones. Raises CheckpointError when it is too far."""
    if not wanted.check:
        return {}
    if not can_open(wanted.format):
        log.warning("not checked: onnxruntime is not installed (pip install 'vla-mot[export]')")
        return {}
    found = replay(ExportedPolicy.open(folder), Weights.open(folder / GOLDEN_FILE).read())
    bound = TOLERANCE[policy.model.stack.dtype]
    judged = {name: value for name, value in found.items() if name.partition(".")[2] not in PREFIX}
    if far := [f"{name} by {value:.1e}" for name, value in judged.items() if not value <= bound]:
        raise CheckpointError(
            f"the programs do not answer as the policy does: {', '.join(far)} (allowed: {bound:g}). Nothing was kept."
        )
    return found
