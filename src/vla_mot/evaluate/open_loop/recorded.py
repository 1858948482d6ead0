"""Moments of a dataset as they were recorded, and a policy asked at each of them.

Legend: `B` moments, `L` chunk steps, `S`/`D` real state and action dims, `V` camera slots, `C`/`h`/`w` latent channels,
rows and columns, `H`/`W` pixels of the model's view.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from vla_mot.infer.policy import Policy
from vla_mot.model.config import ModelConfig
from vla_mot.robots.actions import ABSOLUTE
from vla_mot.robots.dimensions import action_dimensions
from vla_mot.robots.embodiment import Embodiment
from vla_mot.robots.normalization import FeatureStatistics, Statistics
from vla_mot.robots.robot import Robot


@dataclass(frozen=True)
class Recorded:
    """B moments t of one dataset, in physical units.

    images: image feature → `(B, 2, 3, H, W)` uint8, frames t − m and t; future: → `(B, 3, H, W)`, frame t + m.
    future_valid: `(B,)` bool, whether t + m lies inside the episode. state: `(B, S)`.
    actions: `(B, L, D)`; step_mask: `(B, L)` bool, False behind the episode's end. tasks: B instructions.
    episode, frame: `(B,)` int64, t counted from the episode's start. index: `(B,)` int64, which keys the noise.
    """

    images: Mapping[str, Tensor]
    future: Mapping[str, Tensor]
    future_valid: Tensor
    state: Tensor
    actions: Tensor
    step_mask: Tensor
    tasks: tuple[str, ...]
    episode: Tensor
    frame: Tensor
    index: Tensor


@dataclass(frozen=True)
class Predicted:
    """What the policy says at B moments. actions: `(B, L, D)` in physical units. foresight: `(B, V, C, h, w)` latents
    of t + m, None where the policy foresees nothing."""

    actions: Tensor
    foresight: Tensor | None


@torch.no_grad()
def predict(policy: Policy, seen: Recorded, draw: int = 0) -> Predicted:
    """Ask a policy at recorded moments. draw: which noise the chunks start from; it does not depend on the batch.

    A robot without actions is only foreseen.
    """
    if not policy.robot.embodiment.action_dim:
        observation = policy.observe(seen.images, seen.state, seen.tasks).to(policy.device)
        return Predicted(seen.actions, policy.model.prefill(observation).foresight)
    noise = policy.noise(seen.index.tolist(), draw)
    chunk = policy.predict(seen.images, seen.state, seen.tasks, noise)
    return Predicted(chunk.actions.cpu(), chunk.foresight)


def hold_still(robot: Robot, seen: Recorded) -> Tensor:
    """`(B, L, D)`: every action is the present state; where no state stands for it, the training data's mean action.

    What is learned as a delta of something else is counted as a delta, so the mean state is added to it again.
    """
    learned, state = robot.statistics.action.mean, robot.statistics.state.mean
    columns = []
    for place, dimension in enumerate(action_dimensions(robot.embodiment, robot.action_mode)):
        if dimension.state is not None:
            columns.append(seen.state[:, dimension.state])
            continue
        offset = state[place] if dimension.delta and place < len(state) else 0.0
        columns.append((learned[place] + offset).expand(len(seen.state)))
    still = torch.stack(columns, dim=1)
    return still[:, None].expand(-1, seen.actions.shape[1], -1)


def silent_robot(embodiment: Embodiment, model: ModelConfig) -> Robot:
    """One without state and actions, as of people's videos: there is nothing to normalize."""
    none = FeatureStatistics.joined([])
    return Robot(embodiment, Statistics(embodiment.name, ABSOLUTE, model.chunk_size, none, none))
