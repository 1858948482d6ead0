"""`Policy`: a checkpoint that acts. Pure torch, no lerobot.

    policy = Policy.from_pretrained("outputs/demo/policy")
    session = Session(policy, seeds=[0])
    images = {"observation.images.head": head, "observation.images.gripper": gripper}  # (3, h, w) uint8 each
    action = session.act(images, state=state, instruction="pick the red block")

Legend: `B` robots, `V` camera slots, `L` chunk steps, `D` real action dims, `S` real state dims, `h`/`w` a
camera's own pixels.
"""

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import replace
from functools import cached_property, lru_cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor

from vla_mot.batch import ActionChunk, Observation
from vla_mot.errors import ConfigError
from vla_mot.flow.solvers import Guide, Solver
from vla_mot.hub.card import model_card
from vla_mot.hub.checkpoint import open_checkpoint
from vla_mot.hub.dtypes import dtype_name
from vla_mot.hub.manifest import versions
from vla_mot.hub.native import save_policy
from vla_mot.hub.publish import card_facts
from vla_mot.hub.spec import PolicySpec
from vla_mot.hub.upload import MESSAGE, push, require_target
from vla_mot.infer.engine import Engine, EngineConfig
from vla_mot.infer.engine.config import Kind
from vla_mot.keyed import keyed_normal
from vla_mot.model.model import VlaMotModel
from vla_mot.robots.processor import Processor, Tokenize
from vla_mot.robots.robot import Robot

_SAMPLING_STREAM = 7
_INSTRUCTIONS = 256
"""Instructions (of a batch of robots) whose words are remembered."""


class Policy:
    """A model, the robots that it knows, and the one that it drives. Holds no state of an episode.

    robot: one of `spec.robots`; the only one by default. Without a robot a policy can be saved and inspected; acting
    raises ConfigError until `for_robot` chose one. engine: what samples; None: the model itself.
    """

    def __init__(
        self,
        model: VlaMotModel,
        spec: PolicySpec,
        robot: Robot | None = None,
        engine: Engine | None = None,
    ) -> None:
        self.model = model.eval()
        self.spec = spec
        self.engine = engine
        self._robot = spec.robots[0] if robot is None and len(spec.robots) == 1 else robot

    @classmethod
    def from_pretrained(
        cls,
        name: str | Path,
        *,
        embodiment: str | None = None,
        action_mode: str | None = None,
        device: str | torch.device = "cpu",
        dtype: torch.dtype | None = None,
        revision: str | None = None,
        token: str | None = None,
        **overrides: Any,
    ) -> "Policy":
        """Open a checkpoint: a folder or a Hub repository, in our layout or in that of the released policies.

        embodiment, action_mode: the robot to drive, where the checkpoint knows several.
        device: where the weights go, one by one. dtype: float32 or bfloat16 for the weights in memory, and for what is
            saved later; by default as they are stored.
        revision, token: of the Hub. overrides: see `hub.checkpoint.open_checkpoint`.
        Raises CheckpointError when anything is missing, damaged or does not fit, ConfigError for an unknown robot,
        action mode or dtype.
        """
        found = open_checkpoint(name, revision=revision, token=token, action_mode=action_mode, **overrides)
        robot = _named_robot(found.spec, embodiment, action_mode)
        spec = found.spec if dtype is None else replace(found.spec, dtype=dtype_name(dtype))
        return cls(found.load(device=device, dtype=dtype), spec, robot)

    def for_robot(self, embodiment: str | None = None, action_mode: str | None = None) -> "Policy":
        """The same model on another of its robots. Raises ConfigError unless exactly one fits."""
        return Policy(self.model, self.spec, self.spec.robot(embodiment, action_mode), self.engine)

    def with_sampler(
        self, *, num_steps: int | None = None, n_action_steps: int | None = None, solver: Solver | None = None
    ) -> "Policy":
        """The same model on the same robot, sampled in another way; None keeps what the policy has."""
        spec = self.spec.with_sampler(num_steps=num_steps, n_action_steps=n_action_steps, solver=solver)
        return Policy(self.model, spec, self._robot, self.engine)

    def compile(self, kind: Kind = "compiled", **options: Any) -> "Policy":
        """The same model behind an engine, which samples the same actions faster (`vla_mot.infer.engine`).

        The first call on observations of a new form (robots, cameras, length of the instruction) is slow.
        kind: `compiled` (`torch.compile`) or `static`. options: of `EngineConfig`.
        """
        return self.with_engine(EngineConfig(kind, **options))

    def with_engine(self, config: EngineConfig) -> "Policy":
        """See `compile`."""
        return Policy(self.model, self.spec, self._robot, Engine(self.model, config))

    def save_pretrained(self, path: str | Path) -> None:
        """Write a whole checkpoint in our layout, with a golden observation and its answer."""
        from vla_mot.infer.golden import record_golden

        save_policy(Path(path), self.spec, self.model.state_dict(), golden=record_golden(self))

    def push_to_hub(
        self,
        repo_id: str,
        *,
        license: str,
        private: bool | None = None,
        revision: str | None = None,
        message: str = MESSAGE,
        token: str | None = None,
        **card: Any,
    ) -> str:
        """Upload a whole checkpoint in our layout and a model card; returns the commit's URL.

        repo_id: `org/name`. license: of the weights, as the Hub spells it (`apache-2.0`, `cc-by-nc-sa-4.0`, …).
        private, revision, message, token: see `hub.upload.push`. card: further parts of the model card, see
        `hub.card.CardFacts`: notes, datasets, training, success, license_name, ….
        The checkpoint is first written into the folder for temporary files (TMPDIR).
        Raises ConfigError or CheckpointError, before anything is written or sent, for a value that does not fit.
        """
        numbers = sum(tensor.numel() for tensor in self.model.state_dict().values())
        told = {"license": license, "numbers": numbers, "versions": versions()} | card
        facts = card_facts(
            self.spec, require_target(repo_id, revision=revision, message=message, token=token), **told
        )
        with TemporaryDirectory(prefix="vla-mot-") as folder:
            self.save_pretrained(folder)
            return push(
                folder,
                repo_id,
                card=model_card(facts),
                private=private,
                revision=revision,
                message=message,
                token=token,
            )

    @property
    def robot(self) -> Robot:
        """The robot that is driven. Raises ConfigError when none was chosen."""
        return self._robot or self.spec.robot()

    @cached_property
    def processor(self) -> Processor:
        """Turns the robot's units into the model's tensors and back."""
        return self.spec.processor(self.robot, _remembered(self.model.understanding.tokenize))

    @property
    def device(self) -> torch.device:
        """Where the model runs."""
        return next(self.model.parameters()).device

    def observe(
        self, images: Mapping[str, Tensor], state: Tensor, instructions: Sequence[str]
    ) -> Observation:
        """Build the model's observation for B robots.

        images: image feature of the embodiment → `(B, 2, 3, h, w)` uint8 or float in [0, 1], frames t − m and t.
        state: `(B, S)` in physical units. instructions: B strings.
        Raises ConfigError when a camera of the embodiment is missing.
        """
        slots = self._slots(images)
        # An engine reads the masks on the host, and what is small goes to the device with everything else.
        where = self.device if self.engine is None else "cpu"
        return self.processor.observation(slots, state.to(where), instructions)

    @torch.no_grad()
    def encode(self, images: Mapping[str, Tensor]) -> Tensor:
        """Latents `(B, V, C, h, w)` of frames `(B, 3, h, w)` of one time, for `predict`.

        Zero in slots without a camera, which nobody reads. Raises ConfigError when a camera of the embodiment is
        missing.
        """
        slots = {slot: picture.unsqueeze(1) for slot, picture in self._slots(images).items()}
        pictures, there = self.processor.pictures(slots), sorted(slots)
        encode = self.model.encode_frames if self.engine is None else self.engine.encode
        found = encode(pictures[:, there]).squeeze(2)
        if len(there) == pictures.shape[1]:
            return found
        latents = found.new_zeros(len(found), pictures.shape[1], *found.shape[2:])
        latents[:, there] = found
        return latents

    def _slots(self, images: Mapping[str, Tensor]) -> dict[int, Tensor]:
        """Camera slot → its pictures, on the model's device."""
        cameras = self.robot.embodiment.present_cameras
        missing = [key for _, key in cameras if key not in images]
        if missing:
            raise ConfigError(
                f"embodiment {self.robot.embodiment.name!r} expects cameras {', '.join(missing)}; "
                f"got {', '.join(sorted(images)) or 'none'}."
            )
        return {slot: images[key].to(self.device, non_blocking=True) for slot, key in cameras}

    def predict(
        self,
        images: Mapping[str, Tensor],
        state: Tensor,
        instructions: Sequence[str],
        noise: Tensor,
        guide: Guide | None = None,
        session: Hashable | None = None,
        latents: Tensor | None = None,
    ) -> ActionChunk:
        """Predict one chunk per robot, `(B, L, D)` absolute actions in physical units, and the foresight.

        images, state, instructions as in `observe`. noise: `(B, L, A)`, see `noise`. guide: bends the flow on its way.
        session: whose episode it is, for engines that remember what was understood (`Engine.sample`).
        latents: `(B, V, 2, C, h, w)` of history and present where `encode` made them before.
        """
        observation = self.observe(images, state, instructions)
        if latents is not None:
            observation = replace(observation, latents=latents)
        actions, foresight = self._sample(
            observation, noise.to(self.device, non_blocking=True), guide, session
        )
        age = 0 if self.engine is None else self.engine.understanding_age
        state = state.to(self.device, non_blocking=True)
        return ActionChunk(self.processor.physical(actions, state), foresight, age)

    def look(
        self,
        images: Mapping[str, Tensor],
        state: Tensor,
        instructions: Sequence[str],
        session: Hashable | None,
    ) -> None:
        """Understand what is seen for later calls of `predict` in the same session, where an engine does so ahead
        (`EngineConfig.understanding_ahead`) and it is time to; otherwise nothing. Arguments as there."""
        if self.looks_ahead and session is not None:
            assert self.engine is not None
            self.engine.look(self.observe(images, state, instructions), session)

    @property
    def history_steps(self) -> int:
        """How many control steps before the present frame the other one is that is read; 0: none is."""
        runs = self.engine is None or self.engine.generates
        return self.spec.model.history_steps(self.robot.embodiment) if runs else 0

    @property
    def looks_ahead(self) -> bool:
        """Whether `look` may do anything."""
        return self.engine is not None and self.engine.config.understanding_ahead

    def _sample(
        self, observation: Observation, noise: Tensor, guide: Guide | None, session: Hashable | None
    ) -> tuple[Tensor, Tensor | None]:
        """Normalized actions `(B, L, A)` and foresight, as `VlaMotModel.sample` has them."""
        sampler, width = self.spec.sampler, self.robot.embodiment.action_dim
        asked = (observation, noise, sampler.num_steps, width)
        if self.engine is None:
            return self.model.sample(*asked, solver=sampler.solver, guide=guide)
        return self.engine.sample(*asked, solver=sampler.solver, guide=guide, session=session)

    def noise(self, seeds: Sequence[int], call: int) -> Tensor:
        """Starting noise `(B, L, A)` for the `call`-th chunk of episodes with these seeds."""
        shape = (self.spec.model.chunk_size, self.spec.model.max_action_dim)
        index = torch.tensor(list(seeds), dtype=torch.int64)
        return keyed_normal(0, call, _SAMPLING_STREAM, index, shape)


def _remembered(tokenize: Tokenize) -> Tokenize:
    """The same, which reads an instruction once as long as it stands."""

    @lru_cache(maxsize=_INSTRUCTIONS)
    def known(instructions: tuple[str, ...]) -> tuple[Tensor, Tensor]:
        with torch.inference_mode(False):  # who trains later with the same words needs ordinary tensors
            return tokenize(instructions)

    return lambda instructions: known(tuple(instructions))


def _named_robot(spec: PolicySpec, embodiment: str | None, action_mode: str | None) -> Robot | None:
    """The robot of that name; without a name, the only one in that action mode, or None where there are several.

    Raises ConfigError when the checkpoint knows none that fits.
    """
    if embodiment is not None:
        return spec.robot(embodiment, action_mode)
    fitting = [robot for robot in spec.robots if action_mode in (None, robot.action_mode)]
    if spec.robots and not fitting:
        return spec.robot(action_mode=action_mode)
    return fitting[0] if len(fitting) == 1 else None
