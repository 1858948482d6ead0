"""Which frame is history, when frames come at every control step and when they do not."""

import torch
from hypothesis import given
from hypothesis import strategies as st

from vla_mot.infer.memory import FrameMemory


def numbered(step: int) -> dict[str, torch.Tensor]:
    return {"camera": torch.full((1, 3, 2, 2), step)}


def seen(memory: FrameMemory, history: str = "past") -> list[int]:
    """The numbers of the history and of the present frame."""
    return memory.pairs(history)["camera"][0, :, 0, 0, 0].tolist()


@given(st.integers(0, 5), st.integers(1, 20))
def test_history_is_m_steps_ago_and_the_first_frame_before(offset, steps):
    memory = FrameMemory(offset)
    for step in range(steps):
        memory.add(numbered(step))
        assert memory.step == step
        assert seen(memory) == [max(0, step - offset), step]
        assert seen(memory, "present") == [step, step]


@given(st.integers(0, 8), st.lists(st.integers(1, 9), min_size=1, max_size=12))
def test_history_is_the_nearest_to_m_steps_ago(offset, gaps):
    memory, steps = FrameMemory(offset), [0]
    memory.add(numbered(0))
    for gap in gaps:
        steps.append(steps[-1] + gap)
        memory.add(numbered(steps[-1]), gap)
        nearest = min(steps, key=lambda step: abs(step - (steps[-1] - offset)))  # the older one of two
        assert seen(memory) == [nearest, steps[-1]]
