"""A few moments of a dataset as a model would see them: the three frames of every camera, and one chunk of actions.

Legend: `T` frames of an episode, `L` chunk steps, `S`/`D` real state and action dims, `H`/`W` pixels of the view.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from vla_mot.data.source import Source
from vla_mot.robots.actions import DELTA, to_delta
from vla_mot.robots.images import resize_with_pad
from vla_mot.robots.normalization import Statistics


@dataclass(frozen=True)
class Moment:
    """Frames t − m, t and t + m of one episode.

    frame: t, counted from the episode's start. history_real, future_real: whether t − m and t + m lie inside the
    episode; where not, its first or last frame stands in. views: camera slot → `(3, 3, H, W)` uint8.
    """

    episode: int
    frame: int
    task: str
    history_real: bool
    future_real: bool
    views: Mapping[int, Tensor]


@dataclass(frozen=True)
class ChunkTrace:
    """An episode's numbers, and the chunk that starts at `frame` as the model learns it.

    state: `(T, S)`, action: `(T, D)` in physical units. chunk: `(l, D)` normalized (after the state was subtracted
    where the mode is delta), of the l ≤ L steps inside the episode. normalized_state: `(S,)` at `frame`.
    """

    episode: int
    frame: int
    state: Tensor
    action: Tensor
    chunk: Tensor
    normalized_state: Tensor


def middle(source: Source, episode: int, offset: int) -> int:
    """A frame of an episode, from its start, whose history and foresight are real where it is long enough."""
    start, end = source.bounds[episode].tolist()
    length = end - start
    return (
        min(max(length // 2, offset), max(length - 1 - offset, 0), length - 1)
        if length > offset
        else length // 2
    )


def look(source: Source, episode: int, offset: int, view_size: tuple[int, int]) -> Moment:
    """Decode a moment in the middle of an episode. Raises EpisodeError when a picture cannot be decoded.

    offset: m in frames. view_size: (height, width) in pixels.
    """
    start, end = source.bounds[episode].tolist()
    now = start + middle(source, episode, offset)
    times = torch.tensor([now - offset, now, now + offset]).clamp(start, end - 1)
    return Moment(
        episode=episode,
        frame=now - start,
        task=source.task(now),
        history_real=now - offset >= start,
        future_real=now + offset < end,
        views={
            slot: resize_with_pad(source.decode_frames(times, key), *view_size)
            for slot, key in source.embodiment.present_cameras
        },
    )


def trace(source: Source, episode: int, frame: int, statistics: Statistics) -> ChunkTrace:
    """The numbers of an episode, with the chunk of `statistics.chunk_size` steps that starts at `frame`."""
    start, end = source.bounds[episode].tolist()
    state, action = source.state[start:end], source.action[start:end]
    chunk = action[frame : frame + statistics.chunk_size]
    if statistics.action_mode == DELTA:
        chunk = to_delta(chunk, state[frame], source.embodiment.delta_mask)
    return ChunkTrace(
        episode=episode,
        frame=frame,
        state=state,
        action=action,
        chunk=statistics.action.normalize(chunk),
        normalized_state=statistics.state.normalize(state[frame]),
    )
