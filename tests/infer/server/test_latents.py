"""Frames that are encoded once, and ahead where a client sends them ahead; how old an understanding is."""

import threading
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.infer.server.serving import observation, serving
from tests.infer.server.test_batching import metric, wait_until
from tests.infer.tiny_policy import HEAD, tiny_policy
from vla_mot.batch import ActionChunk
from vla_mot.errors import ConfigError
from vla_mot.infer.engine import EngineConfig
from vla_mot.infer.policy import Policy
from vla_mot.infer.server.config import ServerConfig
from vla_mot.infer.server.service import Service
from vla_mot_client import Client, ServerError

PAST = 3  # control steps of the tiny policy's history


class Counting(Policy):
    """Counts the frames that it encodes, and fails or waits where it is told to."""

    def __init__(self) -> None:
        base = tiny_policy()
        super().__init__(base.model, base.spec)
        self.encoded, self.plain, self.fails = 0, 0, False
        self.pictures: list[Tensor] = []
        self.entered, self.go_on = threading.Event(), threading.Event()
        self.go_on.set()

    def predict(self, *others: Any, **options: Any) -> ActionChunk:
        self.plain += options["latents"] is None
        return super().predict(*others, **options)

    def encode(self, images: Mapping[str, Tensor]) -> Tensor:
        self.entered.set()
        assert self.go_on.wait(30)
        self.encoded += 1
        self.pictures.append(images[HEAD])
        if self.fails:
            raise RuntimeError("no latents today")
        return super().encode(images)


def episode(client: Client, policy: Counting | None = None) -> list[np.ndarray]:
    """Chunks at steps 0, 6 and 12, whose histories are sent ahead; every frame is encoded once, before it is needed."""
    client.reset(seed=4)
    chunks = []
    for count, step in enumerate((0, 6, 12)):
        if step:
            client.remember(observation(step=step - PAST) | {"step": step - PAST})
            if policy is not None:
                wait_until(lambda count=count: policy.encoded == 2 * count)
        reply = client.infer(observation(step=step) | {"step": step})
        assert reply["history"]["source"] == ("received" if step else "first")
        assert policy is None or policy.encoded == 2 * count + 1
        chunks.append(reply["actions"])
    return chunks


def test_a_frame_is_encoded_once_and_ahead_and_actions_are_the_same(tiny):
    with serving(tiny) as running, Client(port=running.port) as client:
        expected = episode(client)
    policy = Counting()
    with serving(policy, remember_latents=True) as running, Client(port=running.port) as client:
        found = episode(client, policy)
    assert all(np.allclose(ours, theirs, atol=1e-5) for ours, theirs in zip(found, expected, strict=True))
    assert not np.allclose(expected[0], expected[1], atol=1e-3)


def test_other_pictures_of_the_same_step_are_encoded_anew(tiny):
    said = {}
    for remembers in (False, True):
        with (
            serving(tiny, remember_latents=remembers) as running,
            Client(port=running.port) as client,
        ):
            client.infer(observation(step=0) | {"step": 0})
            said[remembers] = client.infer(observation(step=7) | {"step": 0})["actions"]
    assert np.allclose(said[True], said[False], atol=1e-5)


def test_the_same_pictures_of_a_step_are_not_encoded_again():
    policy = Counting()
    with serving(policy, remember_latents=True) as running, Client(port=running.port) as client:
        for _ in range(2):
            client.infer(observation(step=0) | {"step": 0})
        assert policy.encoded == 1


def test_of_several_frames_that_wait_the_newest_is_encoded_and_requests_come_first():
    policy = Counting()
    policy.go_on.clear()
    with (
        serving(policy, remember_latents=True) as running,
        Client(port=running.port) as client,
        Client(port=running.port) as other,
    ):
        client.remember(observation(step=0) | {"step": 0})  # under way until it may go on
        assert policy.entered.wait(10)
        for step in (1, 2):
            client.remember(observation(step=step) | {"step": step})
        asked = threading.Thread(target=other.infer, args=(observation(row=1) | {"step": 9},))
        asked.start()
        wait_until(lambda: metric(running, "vla_mot_queue_length") == 1)
        policy.go_on.set()
        asked.join(10)
        wait_until(lambda: len(policy.pictures) == 3)
    ours = [torch.from_numpy(observation(step=step)[HEAD]).movedim(-1, 0)[None] for step in (0, 2)]
    theirs = torch.from_numpy(observation(row=1)[HEAD]).movedim(-1, 0)[None]
    for found, expected in zip(policy.pictures, (ours[0], theirs, ours[1]), strict=True):
        assert torch.equal(found, expected)


def test_what_is_encoded_ahead_and_what_is_not_is_warmed_up():
    policy = Counting()
    with serving(policy, remember_latents=True, warm_up=True), serving(policy, warm_up=True):
        assert (policy.encoded, policy.plain) == (2, 2)


def test_clients_in_one_batch_have_latents_of_their_own(tiny):
    policy = Counting()
    with (
        serving(policy, remember_latents=True, batch_window_ms=5000) as running,
        Client(port=running.port) as one,
        Client(port=running.port) as other,
    ):
        asked = [(one, observation(0) | {"step": 0}), (other, observation(1) | {"step": 0})]
        found = {}
        threads = [
            threading.Thread(target=lambda i=i, c=c, o=o: found.update({i: c.infer(o)}))
            for i, (c, o) in enumerate(asked)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(30)
    assert [found[i]["server_timing"]["batch_size"] for i in (0, 1)] == [2, 2] and policy.encoded == 2
    for i in (0, 1):
        with serving(tiny) as running, Client(port=running.port) as client:
            alone = client.infer(observation(i) | {"step": 0})["actions"]
        assert np.allclose(found[i]["actions"], alone, atol=1e-5)


def test_what_fails_ahead_fails_when_it_is_needed_and_then_only(caplog):
    policy = Counting()
    with serving(policy, remember_latents=True) as running, Client(port=running.port) as client:
        policy.fails = True
        client.remember(observation() | {"step": 0})
        wait_until(lambda: "could not be prepared" in caplog.text)
        with pytest.raises(ServerError, match="failed"):
            client.infer(observation(step=3) | {"step": PAST})
        policy.fails = False
        assert client.infer(observation(step=3) | {"step": PAST})["history"]["source"] == "received"


@pytest.mark.parametrize(
    "policy",
    [tiny_policy(history="present"), tiny_policy().with_engine(EngineConfig("static", generation=False))],
    ids=["present alone", "no generation"],
)
def test_latents_of_no_history_are_refused(policy):
    with pytest.raises(ConfigError, match="the policy reads no history"):
        Service({"conveyor": policy}, ServerConfig(remember_latents=True))


def test_an_engine_without_generation_reads_no_history(tiny):
    blind = tiny.with_engine(EngineConfig("static", generation=False))
    with serving(blind) as running, Client(port=running.port) as client:
        assert client.metadata["robots"]["conveyor"]["history_steps"] == 0
        assert client.infer(observation() | {"step": 0})["history"]["source"] == "present"


def test_a_reply_says_how_old_its_understanding_is(tiny):
    engine = EngineConfig("static", understanding_every=3)
    with serving(tiny.with_engine(engine)) as running, Client(port=running.port) as client:
        replies = [client.infer(observation(step=step) | {"step": step}) for step in range(5)]
        assert metric(running, "vla_mot_understanding_age_calls_sum") == 0 + 1 + 2 + 0 + 1
        assert metric(running, "vla_mot_understanding_age_calls_count") == 5
    assert [reply["understanding"]["age_calls"] for reply in replies] == [0, 1, 2, 0, 1]
