"""Chunks in time: which action belongs to which control step, whatever the delay."""

import math
from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from tests.infer.tiny_policy import frames, states, tiny_policy
from vla_mot.errors import ConfigError
from vla_mot.infer.chunking import Chunking
from vla_mot.infer.chunks import Chunks, TimedChunk
from vla_mot.infer.ensemble import EnsembledChunks, ensemble
from vla_mot.infer.inference import SimulatedInference
from vla_mot.infer.session import Session

LENGTH = 12  # a delay of more than half of it must leave gaps: one question at a time


def said_at(start: int, length: int = LENGTH) -> TimedChunk:
    """A chunk of one robot that says, for every step, (which step it is for, when it was asked for)."""
    steps = torch.arange(start, start + length, dtype=torch.float32)
    return TimedChunk(start, torch.stack((steps, torch.full_like(steps, start)), dim=1)[None])


def drive(chunks: Chunks, delay: int, steps: int) -> list[Tensor | None]:
    """The loop of a session with latency, on chunks that say for what they are."""
    under_way: TimedChunk | None = None
    actions = []
    for step in range(steps):
        for _ in range(
            2
        ):  # what arrives may be asked for anew at once; without delay it arrives within the step
            if under_way is not None and step >= under_way.start + delay:
                chunks.add(under_way)
                under_way = None
            if under_way is None and chunks.due(step, delay):
                under_way = said_at(step)
        action = chunks.action(step)
        actions.append(None if action is None else action[0])
    return actions


@given(delay=st.integers(0, LENGTH // 2), every=st.integers(1, LENGTH))
def test_every_action_is_executed_at_the_step_it_is_for(delay, every):
    actions = drive(Chunks(every), delay, steps=40)
    assert all(action is None for action in actions[:delay])
    for step, action in enumerate(actions[delay:], delay):
        assert action is not None, f"nothing to do at step {step}"
        assert action[0] == step
        assert delay <= step - action[1] < LENGTH, (
            "an action that was past when it arrived, or none of the chunk's"
        )


@given(delay=st.integers(0, LENGTH // 2), every=st.integers(1, LENGTH))
def test_questions_keep_their_distance_unless_the_chunk_would_run_out(delay, every):
    actions = drive(Chunks(every), delay, steps=60)
    asked = sorted({int(action[1]) for action in actions[delay:]})
    gaps = {b - a for a, b in pairwise(asked)}
    assert gaps == {max(delay, min(every, LENGTH - delay))}


def test_a_delay_as_long_as_the_chunk_leaves_nothing_to_execute():
    assert drive(Chunks(10), LENGTH, 40).count(None) == 40


@given(delay=st.integers(0, LENGTH // 2), every=st.integers(1, 4), decay=st.floats(0, 3))
def test_an_ensemble_averages_what_is_said_of_the_same_step(delay, every, decay):
    """Chunks that agree give what each of them says, at the right step; their ages are averaged as ACT weighs them."""
    actions = drive(EnsembledChunks(every, decay), delay, steps=40)
    gap = max(1, delay, min(every, LENGTH - delay))
    for step, action in enumerate(actions[delay:], delay):
        assert action[0] == pytest.approx(step, rel=1e-5)
        asked = [t for t in range(0, step + 1, gap) if t + delay <= step < t + LENGTH]
        weights = [math.exp(-decay * i) for i in range(len(asked))]  # the oldest first
        mean = sum(w * t for w, t in zip(weights, asked, strict=True)) / sum(weights)
        assert action[1] == pytest.approx(mean, rel=1e-4, abs=1e-4)


@given(count=st.integers(1, 12), decay=st.floats(0, 5), seed=st.integers(0, 99))
def test_the_ensemble_of_identical_chunks_is_the_chunk(count, decay, seed):
    one = torch.randn(3, 5, generator=torch.Generator().manual_seed(seed))
    torch.testing.assert_close(ensemble(one.expand(count, 3, 5), decay), one)


def test_the_oldest_weighs_most():
    two = torch.tensor([[[0.0]], [[1.0]]])
    assert ensemble(two, 0.0).item() == 0.5
    assert ensemble(two, 1.0).item() == pytest.approx(math.exp(-1) / (1 + math.exp(-1)))


# ---- with a policy -----------------------------------------------------------------------------------------------

CHUNKING = {"naive": Chunking(), "ensemble": Chunking("ensemble"), "rtc": Chunking("rtc")}


def act(policy, seeds, steps: int, chunks=None, delay: int = 0) -> Tensor:
    """Actions `(steps, B, D)`."""
    told = ["pick the red block"] * len(seeds)
    inference = SimulatedInference(policy, delay)
    session = Session(policy, seeds, chunks=chunks or Chunking(), inference=inference)
    rows = len(seeds)
    return torch.stack([session.act(frames(rows, t), states(rows, t), told) for t in range(steps)])


def test_without_delay_nothing_changes(policy):
    told = ["pick the red block"]
    plain = Session(policy, [3])
    expected = torch.stack([plain.act(frames(1, t), states(1, t), told) for t in range(8)])
    assert torch.equal(act(policy, [3], 8), expected)


def test_a_late_chunk_is_the_same_chunk_without_its_beginning(policy):
    """Chunk of 4, 3 executed: it is asked for at step 0, and with a delay of 1 again at step 3."""
    at_once = act(policy, [3], 8)
    late = act(policy, [3], 8, delay=1)
    state = states(1, 0)
    assert torch.equal(late[0, 0], state[0, :3]), "the robot holds still until there is a chunk"
    assert torch.equal(late[1:3], at_once[1:3])
    assert torch.equal(late[4:6], at_once[4:6])


def test_a_session_that_starves_repeats_its_last_action_and_says_so(policy):
    inference = SimulatedInference(policy, 3)  # one action of a chunk of 4 is left when it arrives
    session = Session(policy, [3], inference=inference)
    actions = [session.act(frames(1, t), states(1, t), ["pick the red block"]) for t in range(9)]
    report = session.timing.report()
    assert (report.steps, report.waiting, report.starved, report.longest_starvation) == (9, 3, 4, 2)
    assert (report.asked, report.used, report.stale, report.delay_steps.largest) == (3, 2, 0, 3.0)
    assert torch.equal(actions[4], actions[3]) and torch.equal(actions[5], actions[3])
    assert not torch.equal(actions[6], actions[3])


def test_a_chunk_whose_actions_are_all_past_is_dropped(policy):
    session = Session(policy, [3], inference=SimulatedInference(policy, 4))
    for t in range(9):
        action = session.act(frames(1, t), states(1, t), ["pick the red block"])
        assert torch.equal(action[0], states(1, t)[0, :3])
    report = session.timing.report()
    assert (report.used, report.stale, report.waiting) == (0, 2, 9)


@pytest.mark.parametrize("method", CHUNKING)
def test_robots_that_are_kept_go_on_as_if_nothing_had_happened(policy, method):
    """Dropped while a chunk is under way, and in another order."""
    rows, seeds, told = [2, 0], [11, 12, 13], ["pick the red block"] * 3
    whole = act(policy, seeds, 9, CHUNKING[method], delay=2)
    session = Session(policy, seeds, chunks=CHUNKING[method], inference=SimulatedInference(policy, 2))
    for t in range(4):
        session.act(frames(3, t), states(3, t), told)
    session.keep([2, 1, 0])
    session.keep([0, 2])
    for t in range(4, 9):
        cameras = {key: image[rows] for key, image in frames(3, t).items()}
        action = session.act(cameras, states(3, t)[rows], told[:2])
        torch.testing.assert_close(action, whole[t, rows], atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"method": "naiv"}, "Did you mean 'naive'"),
        ({"every": 0}, "every must be at least 1"),
        ({"ensemble_decay": -0.1}, "ensemble_decay must be at least 0"),
        ({"ensemble_decay": math.nan}, "ensemble_decay must be at least 0"),
    ],
)
def test_what_cannot_be_is_refused(wrong, message):
    with pytest.raises(ConfigError, match=message):
        Chunking(**wrong)
    with pytest.raises(ConfigError, match="delay must be at least 0"):
        SimulatedInference(tiny_policy(), -1)
