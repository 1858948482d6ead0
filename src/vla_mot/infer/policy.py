"""`Policy`: a checkpoint that acts. Pure torch, no lerobot.

    policy = Policy.from_pretrained("outputs/demo/policy")
    session = Session(policy, seeds=[0])
    action = session.act(images={"observation.images.head": frame}, state=state, instruction="pick the red block")

Legend: `B` robots, `V` camera slots, `L` chunk steps, `D` real action dims, `S` real state dims, `h`/`w` a
camera's own pixels.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from vla_mot.batch import ActionChunk, Observation
from vla_mot.errors import CheckpointError, ConfigError
from vla_mot.flow.noise import keyed_normal
from vla_mot.hub.native import WEIGHTS_FILE, PolicySpec, load_weights, read_spec, save_policy
from vla_mot.model.model import VlaMotModel

_SAMPLING_STREAM = 7


class Policy:
    """A model with the embodiment, statistics and sampler that make it act. Holds no state of an episode."""

    def __init__(self, model: VlaMotModel, spec: PolicySpec) -> None:
        self.model = model.eval()
        self.spec = spec
        self.processor = spec.processor(model.understanding.tokenize)

    @classmethod
    def from_pretrained(cls, path: str | Path, *, device: str | torch.device = "cpu") -> "Policy":
        """Open a checkpoint folder. Raises CheckpointError when anything is missing, damaged or does not fit."""
        folder = Path(path)
        if not folder.is_dir():
            raise CheckpointError(f"{folder} is no folder; give the folder that holds config.json.")
        spec = read_spec(folder)
        model = VlaMotModel(spec.model)
        load_weights(model, folder / WEIGHTS_FILE)
        return cls(model.to(device), spec)

    def save_pretrained(self, path: str | Path) -> None:
        """Write `config.json`, `model.safetensors` and `stats.json`."""
        save_policy(Path(path), self.spec, self.model.state_dict())

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
        missing = [key for _, key in self.spec.embodiment.present_cameras if key not in images]
        if missing:
            raise ConfigError(
                f"embodiment {self.spec.embodiment.name!r} expects cameras {', '.join(missing)}; "
                f"got {', '.join(sorted(images)) or 'none'}."
            )
        slots = {slot: images[key].to(self.device) for slot, key in self.spec.embodiment.present_cameras}
        return self.processor.observation(slots, state.to(self.device), instructions)

    def predict(
        self, images: Mapping[str, Tensor], state: Tensor, instructions: Sequence[str], noise: Tensor
    ) -> ActionChunk:
        """Predict one chunk per robot, `(B, L, D)` absolute actions in physical units, and the foresight.

        images, state, instructions as in `observe`. noise: `(B, L, A)`, see `noise`.
        """
        observation = self.observe(images, state, instructions)
        actions, foresight = self.model.sample(
            observation, noise.to(self.device), self.spec.sampler.num_steps, self.spec.embodiment.action_dim
        )
        return ActionChunk(self.processor.physical(actions, state.to(self.device)), foresight)

    def noise(self, seeds: Sequence[int], call: int) -> Tensor:
        """Starting noise `(B, L, A)` for the `call`-th chunk of episodes with these seeds."""
        shape = (self.spec.model.chunk_size, self.spec.model.max_action_dim)
        index = torch.tensor(list(seeds), dtype=torch.int64)
        return keyed_normal(0, call, _SAMPLING_STREAM, index, shape)
