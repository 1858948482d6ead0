"""Opened programs, which sample as the model that they were made of does.

Legend: `B` batch, `V` views, `L` chunk steps, `A` action dims, `C`/`h`/`w` latent channels, rows and columns.
"""

import logging
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from vla_mot.batch import Observation
from vla_mot.errors import ConfigError
from vla_mot.flow.solvers import Guide, Solver, integrate
from vla_mot.infer.export.formats import Run, open_program
from vla_mot.infer.export.program_file import ProgramFile, TensorFacts
from vla_mot.infer.export.stages import PREFIX, SEEN
from vla_mot.robots.images import to_bytes, to_unit

log = logging.getLogger(__name__)


class Programs:
    """The programs of one folder. `sample` has the signature of `VlaMotModel.sample`."""

    def __init__(self, folder: Path, facts: ProgramFile) -> None:
        self.facts = facts
        self._runs: dict[str, Run] = {
            name: open_program(facts.written.format, folder / stage.file)
            for name, stage in facts.stages.items()
        }
        self._warned = False

    def run(self, stage: str, given: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """One program: argument → tensor, result → tensor. Arguments that it does not take are left out.

        Raises ConfigError for a stage that was not exported, and for another number of samples than it was for.
        """
        if stage not in self._runs:
            raise ConfigError(
                f"stage {stage!r} was not exported; there is {', '.join(self._runs)}. Export it: stages=[…,{stage}]."
            )
        told = self.facts.stages[stage]
        for fact in told.inputs:
            _require_fit(stage, fact, given[fact.name])
        results = self._runs[stage]([given[fact.name].contiguous() for fact in told.inputs])
        return dict(zip([fact.name for fact in told.outputs], results, strict=True))

    @torch.no_grad()
    def sample(
        self,
        observation: Observation,
        noise: Tensor,
        num_steps: int,
        action_dim: int,
        *,
        solver: Solver = "euler",
        guide: Guide | None = None,
    ) -> tuple[Tensor, Tensor | None]:
        """Normalized actions `(B, L, A)` float32 from `(B, L, A)` noise, and the foresight `(B, V, C, h, w)`, if any.

        By prefill and denoise where they were exported, otherwise by the program that holds all steps, which can take
        no other steps and no guide: then ConfigError.
        """
        given = self.arguments(observation) | {"noise": noise.float()}
        if {"prefill", "denoise"} <= self._runs.keys():
            return self._in_stages(given, num_steps, solver, guide)
        mine = self.facts.spec.sampler
        if guide is not None or (num_steps, solver) != (mine.num_steps, mine.solver):
            raise ConfigError(
                f"the exported program samples by {mine.solver} in {mine.num_steps} steps and takes no guide; export "
                "stages=[prefill,denoise] for anything else."
            )
        done = self.run("sample", given)
        return done["actions"], done.get("foresight")

    def _in_stages(
        self, given: Mapping[str, Tensor], num_steps: int, solver: Solver, guide: Guide | None
    ) -> tuple[Tensor, Tensor | None]:
        prefix = self.run("prefill", given)
        kept = {name: prefix[name] for name in PREFIX}

        def velocity_at(x: Tensor, level: Tensor) -> Tensor:
            if x.requires_grad and self.facts.written.format != "torch_export":
                raise ConfigError(
                    f"programs of format {self.facts.written.format} carry no gradients, which the guide asks for; "
                    "choose jacobian='identity' or mode='frozen', or export format=torch_export."
                )
            return self.run("denoise", kept | {"x": x, "noise_level": level})["velocity"]

        bent = velocity_at if guide is None else guide(velocity_at)
        noise = given["noise"]
        real = torch.arange(noise.shape[-1], device=noise.device) < self.facts.noise_dims
        return integrate(bent, noise * real, num_steps, solver), prefix.get("foresight")

    def arguments(self, observation: Observation) -> dict[str, Tensor]:
        """What the programs take of an observation. Raises ConfigError for latents that they have no use for."""
        images, latents = self._pixels(observation.images), observation.latents
        given = {name: getattr(observation, name) for name in SEEN} | {"images": images}
        if not self.facts.written.latents:
            if latents is not None:
                raise ConfigError(
                    "the programs encode pictures themselves; export with latents=true to give latents."
                )
            return given
        if latents is None:
            both = [self.encode(frame) for frame in images.unbind(2)]
            latents = torch.stack(both, dim=2)
        return given | {"images": images[:, :, 1], "latents": latents.float()}

    def encode(self, frames: Tensor) -> Tensor:
        """Frames `(B, V, 3, H, W)`, uint8 or float in [0, 1] → latents `(B, V, C, h, w)` float32."""
        return self.run("encode", {"frames": self._pixels(frames)})["frame_latents"]

    def _pixels(self, images: Tensor) -> Tensor:
        return to_unit(images) if self.facts.written.pixels == "float32" else self._bytes(images)

    def _bytes(self, images: Tensor) -> Tensor:
        if images.dtype == torch.uint8:
            return images
        if not self._warned:
            log.warning(
                "pictures of another size than the model's are rounded to bytes after resizing, since the programs "
                "take bytes; export with pixels=float32 for the very numbers of the policy"
            )
            self._warned = True
        return to_bytes(images)


def _require_fit(stage: str, fact: TensorFacts, tensor: Tensor) -> None:
    """Raise ConfigError for a tensor that the program was not made for."""
    shape = tuple(tensor.shape)
    fits = len(shape) == len(fact.shape) and all(
        size in (None, mine) for size, mine in zip(fact.shape, shape, strict=True)
    )
    if not fits:
        raise ConfigError(
            f"{stage} takes {fact.name} of shape {list(fact.shape)}, got {list(shape)}; for another number of robots, "
            "export with batch=null."
        )
