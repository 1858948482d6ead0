"""Chunks that go on with the last one: what the server keeps for it, and what it is told."""

from contextlib import ExitStack

import numpy as np
import pytest
import torch

from tests.infer.server.serving import TASK, Running, observation, serving
from tests.infer.server.test_batching import Slow, held_together
from tests.infer.tiny_policy import frames, states, tiny_policy
from vla_mot.infer.engine import EngineConfig
from vla_mot.infer.rtc import RtcConfig, continue_chunk
from vla_mot.infer.server.config import ServerConfig
from vla_mot_client import Client, ServerError

FROZEN = RtcConfig("frozen")


@pytest.fixture(scope="module")
def frozen(tiny) -> Running:
    with serving(tiny, rtc=FROZEN) as running:
        yield running


def at(step: int, **more) -> dict:
    return {**observation(step=step), "step": step} | more


def test_what_will_have_been_executed_is_kept(frozen):
    with Client(port=frozen.port) as client:
        first = client.infer(at(0, delay=2))
        second = client.infer(at(1, delay=2))
        free = client.infer(at(1))
        assert first["continued"] is None and free["continued"] is None
        assert second["continued"] == {"steps": 3, "delay": 2}
        assert np.allclose(second["actions"][:2], first["actions"][1:3], atol=1e-5)
        assert not np.allclose(free["actions"][:2], first["actions"][1:3], atol=1e-3)
        assert client.infer(at(5, delay=1))["continued"] is None  # the last chunk had ended
        client.infer(at(5))
        assert client.infer(at(6, delay=9))["continued"] == {"steps": 3, "delay": 3}
        client.reset()
        assert client.infer(at(0, delay=1))["continued"] is None


def test_guided_is_the_policys_own(tiny):
    """The default; the same numbers as a guided `Policy.predict`."""
    with serving(tiny) as running, Client(port=running.port) as client:
        first = client.infer(at(0))["actions"]
        second = client.infer(at(1, delay=1))["actions"]
    before, now = frames(1, 0), frames(1, 1)
    pairs = {key: torch.stack((before[key], now[key]), 1) for key in now}
    state, noise = states(1, 1), tiny.noise([0], 1)
    left = torch.from_numpy(np.array(first[None, 1:]))
    guide = continue_chunk(ServerConfig().rtc, left, 1, state, noise, tiny.processor)
    alone = tiny.predict(pairs, state, [TASK], noise, guide).actions[0].numpy()
    free = tiny.predict(pairs, state, [TASK], noise).actions[0].numpy()
    assert np.array_equal(second, alone) and not np.allclose(alone, free, atol=1e-4)


def test_a_client_may_bring_what_is_left(frozen):
    left = np.full((2, 3), 0.05)
    with Client(port=frozen.port) as client:
        reply = client.infer({**observation(), "delay": 2, "left_over": left})
    assert reply["continued"] == {"steps": 2, "delay": 2}
    assert np.allclose(reply["actions"][:2], left, atol=1e-5)


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ({"delay": 1}, "say which, or send 'left_over'"),
        ({"delay": -1}, "delay is a whole number"),
        ({"delay": 1, "left_over": np.zeros((2, 4))}, "left_over: expected 3 numbers"),
        ({"delay": 1, "left_over": np.zeros(3)}, r"left_over: expected an array \(steps, 3\)"),
        ({"delay": 1, "left_over": np.full((1, 3), np.inf)}, "left_over: not every number is finite"),
        ({"left_over": np.zeros((2, 3))}, "left_over needs a delay"),
    ],
    ids=str,
)
def test_what_makes_no_sense(frozen, more, words):
    with Client(port=frozen.port) as client, pytest.raises(ServerError, match=words):
        client.infer({**observation(), **more})


def test_neighbours_with_nothing_left_have_a_batch_of_their_own():
    policy = Slow()
    left = np.full((2, 3), 0.05)
    asked = [
        observation(0),
        observation(1, delay=1, left_over=left),
        observation(2),
        observation(3, delay=1, left_over=left),
    ]
    with serving(policy, rtc=FROZEN) as running:
        found = held_together(running, policy, asked)
    assert policy.batches == [1, 2, 2]
    assert [reply["continued"] for reply in found] == [None, {"steps": 2, "delay": 1}] * 2
    assert np.allclose([found[1]["actions"][0], found[3]["actions"][0]], 0.05, atol=1e-5)


HERS = [at(0, delay=2), at(2, delay=1), at(3), at(7, delay=3), at(9, delay=1)]
HIS = [
    {**observation(1, step), "step": step, **more}
    for step, more in ((1, {}), (2, {"delay": 3}), (4, {"delay": 0}), (5, {"delay": 2}), (6, {}))
]


@pytest.mark.parametrize("engine", [None, EngineConfig("static")], ids=["model", "engine"])
def test_clients_that_take_turns_are_answered_as_if_alone(engine):
    """Pictures, seeds, steps and delays are each one's own, and so are the frames and chunks that are kept."""
    policy = tiny_policy() if engine is None else tiny_policy().with_engine(engine)
    with serving(policy, rtc=FROZEN) as running:
        alone = [turns(running, [content], [seed])[0] for content, seed in ((HERS, 3), (HIS, 8))]
        together = turns(running, [HERS, HIS], [3, 8])
    for ours, theirs in zip(together, alone, strict=True):
        for mine, expected in zip(ours, theirs, strict=True):
            assert np.array_equal(mine["actions"], expected["actions"])
            assert all(mine[key] == expected[key] for key in ("history", "noise", "continued", "step"))
    hers, his = ([reply["continued"] is not None for reply in replies] for replies in together)
    assert hers == [False, True, False, False, True] and his == [False, True, True, True, False]
    assert not np.allclose(together[0][0]["actions"], together[1][0]["actions"], atol=1e-3)


def turns(running: Running, asked: list[list[dict]], seeds: list[int]) -> list[list[dict]]:
    """What every client is answered, when each asks once before the first one asks again."""
    with ExitStack() as stack:
        clients = [stack.enter_context(Client(port=running.port)) for _ in asked]
        for client, seed in zip(clients, seeds, strict=True):
            client.reset(seed=seed)
        rounds = [
            [client.infer(content) for client, content in zip(clients, contents, strict=True)]
            for contents in zip(*asked, strict=True)
        ]
    return [list(replies) for replies in zip(*rounds, strict=True)]
