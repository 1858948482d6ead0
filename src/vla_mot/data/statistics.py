"""Normalization statistics of one dataset: of states over frames, of actions over real chunk windows.

Legend: `N` frames, `L` chunk steps, `D` dims of one feature.
"""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from vla_mot.data.source import Source
from vla_mot.errors import ConfigError, unknown_name
from vla_mot.robots.actions import ABSOLUTE, DELTA, to_delta
from vla_mot.robots.normalization import Statistics, summarize


def compute_statistics(
    source: Source, chunk_size: int, action_mode: str, episodes: Sequence[int] | None = None
) -> Statistics:
    """Statistics of the given episodes (all by default), accumulated in float64.

    The action counts every real step of every window of `chunk_size` steps that starts at one of the frames, in
    mode `delta` after subtracting the state at the window's start. Steps past an episode's end are not counted.
    Raises ConfigError for an unknown mode, a chunk below one step, or no episodes.
    """
    if action_mode not in (ABSOLUTE, DELTA):
        raise ConfigError(unknown_name("action mode", action_mode, (ABSOLUTE, DELTA)))
    if chunk_size < 1:
        raise ConfigError(f"chunk_size must be at least 1, got {chunk_size}.")
    chosen = torch.as_tensor(range(source.num_episodes) if episodes is None else list(episodes))
    if not len(chosen):
        raise ConfigError("statistics need at least one episode.")
    starts, ends = source.bounds[chosen].unbind(1)
    frames = torch.cat(
        [torch.arange(start, end) for start, end in zip(starts.tolist(), ends.tolist(), strict=True)]
    )
    last = torch.repeat_interleave(ends, ends - starts)
    return Statistics(
        embodiment=source.embodiment.name,
        action_mode=action_mode,
        chunk_size=chunk_size,
        state=summarize([source.state[frames]]),
        action=summarize(_action_steps(source, frames, last, chunk_size, action_mode)),
    )


def _action_steps(source: Source, frames: Tensor, last: Tensor, length: int, mode: str) -> Iterator[Tensor]:
    """Per offset k, the actions k steps into every window that reaches so far: `(n, D)` float64 each."""
    for k in range(length):
        start = frames[frames + k < last]
        actions = source.action[start + k].double()
        if mode == DELTA:
            state = source.state[start].double()
            actions = to_delta(actions[:, None], state, source.embodiment.delta_mask)[:, 0]
        yield actions
