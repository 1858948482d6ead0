"""What deserves a look in a dataset that fits its robot: nothing here forbids training on it."""

from collections.abc import Iterator, Sequence

import torch

from vla_mot.data.source import Source

_NAMED = 6  # names in a sentence before it says `…`


def remarks(source: Source) -> Iterator[str]:
    """Sentences about a dataset; every frame is looked at, no picture."""
    yield from _still(source)
    yield from _widened(source)
    yield from _uneven(source)
    yield from _unsaid(source)


def shown(names: Sequence[str]) -> str:
    """The first few names."""
    return ", ".join(names[:_NAMED]) + (", …" if len(names) > _NAMED else "")


def _still(source: Source) -> Iterator[str]:
    embodiment = source.embodiment
    for kind, fields, values in (
        ("state", embodiment.state, source.state),
        ("action", embodiment.action, source.action),
    ):
        still = (values.amin(0) == values.amax(0)).tolist()
        names = [name for field in fields for name in field.names]
        chosen = [name for name, is_still in zip(names, still, strict=True) if is_still]
        if chosen:
            yield f"{kind} dimensions that never change: {shown(chosen)}"


def _widened(source: Source) -> Iterator[str]:
    """Deltas are there to make actions smaller. Where they do not, the recorded action may be one already.

    A target that the robot follows slowly widens too, but lies where the states are.
    """
    mask = torch.tensor(source.embodiment.delta_mask, dtype=torch.bool)
    if not mask.any():
        return
    width = mask.numel()
    state = torch.nn.functional.pad(source.state, (0, max(0, width - source.state.shape[1])))[:, :width]
    spread, there = source.action.double().std(0, correction=0), state.double().std(0, correction=0)
    wider = mask & ((source.action - state).double().std(0, correction=0) > spread + 1e-6)
    away = (source.action.double().mean(0) - state.double().mean(0)).abs() > there
    wider &= away | (spread > 2 * there) | (spread < there / 2)
    names = [name for field in source.embodiment.action for name in field.names]
    chosen = [name for name, is_wider in zip(names, wider.tolist(), strict=True) if is_wider]
    if chosen:
        yield (
            f"action minus state varies more than the action itself: {shown(chosen)}. Are these deltas already?"
        )


def _uneven(source: Source) -> Iterator[str]:
    starts, ends = source.bounds.unbind(1)
    place = torch.arange(source.num_frames) - torch.repeat_interleave(starts, ends - starts)
    off = float((source.timestamp.double() - place / source.fps).abs().max())
    if off > 0.25 / source.fps:
        yield (
            f"time stamps are up to {off:.3g} s away from a steady {source.fps:g} fps: distances in time are uneven"
        )


def _unsaid(source: Source) -> Iterator[str]:
    empty = [i for i, task in enumerate(source.tasks) if not task.strip()]
    frames = int(torch.isin(source.task_index, torch.tensor(empty, dtype=source.task_index.dtype)).sum())
    if frames:
        yield f"{frames:,} frames have no instruction"
