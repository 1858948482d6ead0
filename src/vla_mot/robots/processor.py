"""From a robot's own units to the model's tensors and back: the one place where both sides meet.

Training, evaluation, the LeRobot policy and a server all go through `Processor`, so that what was trained is
what runs. Legend as in `vla_mot.batch`; `D` real action dims, `h`/`w` a camera's own pixels.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from vla_mot.batch import Batch, Observation
from vla_mot.errors import ConfigError
from vla_mot.robots.actions import DELTA, to_absolute, to_delta
from vla_mot.robots.embodiment import Embodiment
from vla_mot.robots.images import resize_with_pad, to_unit
from vla_mot.robots.normalization import Statistics, pad_last
from vla_mot.robots.robot import Robot

Tokenize = Callable[[Sequence[str]], tuple[Tensor, Tensor]]
"""Instructions → (token_ids `(B, N)` int64, token_mask `(B, N)` bool)."""


@dataclass(frozen=True)
class Processor:
    """Normalizes, subtracts, pads and resizes for one robot.

    robot: embodiment, and statistics in the action mode. tokenize: the backbone's.
    image_size: (height, width) of every view after `resize_with_pad`, in pixels.
    state_width, action_width: the model's padded widths S and A.
    slots: camera slots that an observation always has; None leaves out those behind the last camera.
    """

    robot: Robot
    tokenize: Tokenize
    image_size: tuple[int, int]
    state_width: int
    action_width: int
    slots: int | None = None

    @property
    def embodiment(self) -> Embodiment:
        """The robot's."""
        return self.robot.embodiment

    @property
    def statistics(self) -> Statistics:
        """The robot's."""
        return self.robot.statistics

    def observation(
        self, images: Mapping[int, Tensor], state: Tensor, instructions: Sequence[str]
    ) -> Observation:
        """Build the model's observation.

        images: slot → `(B, 2, 3, h, w)` uint8 or float in [0, 1], frames t - m and t; absent slots are left out. Where
            all are uint8 of the model's size the observation's are uint8, otherwise float32.
        state: `(B, state_dim)` in physical units. instructions: B strings.
        """
        stacked = self.pictures(images)
        slots = stacked.shape[1]
        present = torch.tensor([slot in images for slot in range(slots)], device=state.device)
        token_ids, token_mask = self.tokenize(instructions)
        return Observation(
            images=stacked,
            view_mask=present.expand(state.shape[0], slots).clone(),
            state=self.state(state),
            token_ids=token_ids.to(state.device),
            token_mask=token_mask.to(state.device),
        )

    def pictures(self, images: Mapping[int, Tensor]) -> Tensor:
        """Slot → `(B, T, 3, h, w)` of any number of times → `(B, V, T, 3, H, W)`, ones where a camera is absent.

        Raises ConfigError when none is there.
        """
        if not images:
            raise ConfigError(f"embodiment {self.embodiment.name!r}: no camera image was given.")
        views = self._views(images)
        absent = torch.full_like(next(iter(views.values())), 255 if _are_bytes(views) else 1)
        return torch.stack([views.get(slot, absent) for slot in range(self.slots or max(images) + 1)], dim=1)

    def _views(self, images: Mapping[int, Tensor]) -> dict[int, Tensor]:
        """The pictures at the model's size, all of one dtype.

        Bytes that have that size stay bytes. Any others are resized as floats, like the reference does, so that a
        camera's bytes and the same picture in floats give the same numbers.
        """
        if _are_bytes(images) and all(view.shape[-2:] == self.image_size for view in images.values()):
            return dict(images)
        return {slot: resize_with_pad(to_unit(view), *self.image_size) for slot, view in images.items()}

    def batch(
        self,
        observation: Observation,
        future: Tensor,
        future_mask: Tensor,
        actions: Tensor,
        step_mask: Tensor,
        index: Tensor,
        state: Tensor,
    ) -> Batch:
        """Add what is to be learned: `future` `(B, V, 3, H, W)`, `future_mask` `(B, V)`, `actions`
        `(B, L, D)` absolute in physical units, `step_mask` `(B, L)`, `index` `(B,)`, `state` `(B, state_dim)`."""
        width = actions.shape[-1]
        real_dims = torch.arange(self.action_width, device=actions.device) < width
        return Batch(
            observation=observation,
            future=future,
            future_mask=future_mask & observation.view_mask,
            actions=self.actions(actions, state),
            action_mask=step_mask.unsqueeze(-1) & real_dims,
            index=index,
        )

    def state(self, state: Tensor) -> Tensor:
        """`(B, state_dim)` in physical units → `(B, S)` normalized and padded."""
        if state.shape[-1] != self.embodiment.state_dim:
            raise ConfigError(
                f"state has {state.shape[-1]} dimensions, embodiment {self.embodiment.name!r} expects "
                f"{self.embodiment.state_dim}."
            )
        return pad_last(self.statistics.state.normalize(state.float()), self.state_width, "state")

    def actions(self, actions: Tensor, state: Tensor) -> Tensor:
        """`(B, L, D)` absolute in physical units → `(B, L, A)` normalized and padded."""
        if self.statistics.action_mode == DELTA:
            actions = to_delta(actions, state, self.embodiment.delta_mask)
        return pad_last(self.statistics.action.normalize(actions), self.action_width, "action")

    def physical(self, actions: Tensor, state: Tensor) -> Tensor:
        """`(B, L, A)` normalized → `(B, L, D)` absolute in physical units; the inverse of `actions`."""
        chunk = self.statistics.action.unnormalize(actions[..., : self.embodiment.action_dim].float())
        if self.statistics.action_mode == DELTA:
            chunk = to_absolute(chunk, state, self.embodiment.delta_mask)
        return chunk


def _are_bytes(views: Mapping[int, Tensor]) -> bool:
    return all(view.dtype == torch.uint8 for view in views.values())
