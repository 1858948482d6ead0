"""`ExportedPolicy`: a folder of programs that acts as the policy that they were made of.

    robot = ExportedPolicy.open("outputs/program")
    session = Session(robot, seeds=[0])

Legend: `B` robots, `L` chunk steps, `D` real action dims, `A` action dims.
"""

from collections.abc import Hashable, Mapping
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor

from vla_mot.backbones import build_backbone
from vla_mot.batch import Observation
from vla_mot.errors import CheckpointError, ConfigError
from vla_mot.flow.solvers import Guide, Solver
from vla_mot.hub.manifest import compare, identity
from vla_mot.hub.spec import PolicySpec
from vla_mot.infer.export.program_file import read_program_file
from vla_mot.infer.export.programs import Programs
from vla_mot.infer.policy import Policy
from vla_mot.model.model import VlaMotModel
from vla_mot.robots.processor import Processor


class ExportedPolicy(Policy):
    """A policy whose model is a folder of programs: it observes, predicts and draws noise like any other.

    What needs weights (saving, compiling, another robot) raises ConfigError. spec: knows one robot.
    """

    def __init__(self, programs: Programs, spec: PolicySpec) -> None:
        self.programs, self.spec, self.engine = programs, spec, None
        (self._robot,) = spec.robots

    @classmethod
    def open(cls, folder: str | Path, *, sha256: str | None = None) -> "ExportedPolicy":
        """Open what `vla-mot export` wrote, after comparing every file with its recorded hash.

        sha256: of the folder's `manifest.json`, as the command printed it. The hashes in the folder show damage; only
            this one, kept elsewhere, shows that nobody exchanged the programs, and programs can run any code.
        Raises CheckpointError for a file that is missing, added or changed, ConfigError where what runs it is missing.
        """
        place = Path(folder)
        facts = read_program_file(place)
        found = identity(place)
        if sha256 is not None and found != sha256:
            raise CheckpointError(
                f"{place}: the manifest's SHA-256 is {found}, expected {sha256}; open nothing of it."
            )
        if problems := compare(place):
            raise CheckpointError(
                f"{place} is not what was exported: {'; '.join(problems)}. Export it again."
            )
        return cls(Programs(place, facts), facts.spec)

    def with_sampler(
        self, *, num_steps: int | None = None, n_action_steps: int | None = None, solver: Solver | None = None
    ) -> "ExportedPolicy":
        """The same programs, sampled in another way; None keeps what the policy has."""
        spec = self.spec.with_sampler(num_steps=num_steps, n_action_steps=n_action_steps, solver=solver)
        return ExportedPolicy(self.programs, spec)

    @property
    def model(self) -> VlaMotModel:  # type: ignore[override]
        """Raises ConfigError: there is none."""
        raise ConfigError(
            "an exported policy has programs instead of a model; for its weights, open the checkpoint it came from."
        )

    @cached_property
    def processor(self) -> Processor:
        """Turns the robot's units into the model's tensors and back, as in the policy that was exported."""
        with torch.device("meta"):  # a tokenizer needs none of the weights beside it
            tokenize = build_backbone(self.spec.model.backbone).tokenize
        return self.spec.processor(self.robot, tokenize)

    @property
    def device(self) -> torch.device:
        """Where the programs take their tensors."""
        return torch.device(self.programs.facts.written.device)

    @torch.no_grad()
    def encode(self, images: Mapping[str, Tensor]) -> Tensor:
        """See `Policy.encode`. Raises ConfigError unless the programs were exported with `latents`."""
        slots = {slot: picture.unsqueeze(1) for slot, picture in self._slots(images).items()}
        return self.programs.encode(self.processor.pictures(slots)[:, :, 0])

    def _sample(
        self, observation: Observation, noise: Tensor, guide: Guide | None, session: Hashable | None
    ) -> tuple[Tensor, Tensor | None]:
        """See `Policy._sample`; nothing is remembered of a session.

        Raises ConfigError for another number of robots than the programs are for, and for latents where the programs
        encode pictures themselves.
        """
        sampler, width = self.spec.sampler, self.robot.embodiment.action_dim
        steps = sampler.num_steps
        return self.programs.sample(observation, noise, steps, width, solver=sampler.solver, guide=guide)
