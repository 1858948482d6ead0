"""Who is predicted beside whom, who waits, and whose fault stays whose. The policy is real, and slow where asked."""

import threading
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.infer.server.serving import TASK, Running, observation, serving
from tests.infer.tiny_policy import GRIPPER, HEAD, SIZE, tiny_policy
from vla_mot.batch import ActionChunk
from vla_mot.infer.engine import EngineConfig
from vla_mot.infer.policy import Policy
from vla_mot_client import Client, ServerError

WIDE = {key: np.full((48, 64, 3), 9, np.uint8) for key in (HEAD, GRIPPER)}
"""Pictures that are not of the model's own size."""


class Slow(Policy):
    """Takes its time, remembers the size of its batches, and fails where it is told to."""

    def __init__(self, seconds: float = 0.0, poison: str = "", engine: EngineConfig | None = None) -> None:
        base = tiny_policy() if engine is None else tiny_policy().with_engine(engine)
        super().__init__(base.model, base.spec, engine=base.engine)
        self.seconds, self.poison = seconds, poison
        self.batches: list[int] = []
        self.sizes: set[tuple[int, ...]] = set()
        self.entered, self.go_on = threading.Event(), threading.Event()
        self.go_on.set()

    def predict(
        self,
        images: Mapping[str, Tensor],
        state: Tensor,
        instructions: Sequence[str],
        *others: Any,
        **options: Any,
    ) -> ActionChunk:
        self.entered.set()
        self.go_on.wait(30)
        time.sleep(self.seconds)
        self.batches.append(len(state))
        self.sizes |= {tuple(picture.shape[-2:]) for picture in images.values()}
        if self.poison == "raise" and "poison" in instructions:
            raise RuntimeError("secret detail in /secret/path")
        chunk = super().predict(images, state, instructions, *others, **options)
        if self.poison == "nan":
            bad = torch.tensor(["poison" in told for told in instructions])
            chunk.actions[bad] = torch.nan
        return chunk


def held_together(running: Running, policy: Slow, asked: list[dict]) -> list[dict | ServerError]:
    """Answers to requests of as many clients, which queue in this order while the policy is busy with another one."""
    policy.go_on.clear()
    policy.entered.clear()
    with ThreadPoolExecutor(len(asked) + 1) as threads:
        first = threads.submit(one, running.port, observation(), 0)
        assert policy.entered.wait(10)
        others = []
        for place, content in enumerate(asked):
            others.append(threads.submit(one, running.port, content, place))
            wait_until(lambda: metric(running, "vla_mot_queue_length") == len(others))
        policy.go_on.set()
        first.result()
        return [other.result() for other in others]


def one(port: int, content: dict, seed: int) -> dict | ServerError:
    with Client(port=port) as client:
        client.reset(seed=seed)
        try:
            return client.infer(content)
        except ServerError as error:
            return error


def metric(running: Running, name: str) -> float:
    text = running.server._service.metrics.text()
    return next(float(line.split()[-1]) for line in text.splitlines() if line.split()[0] == name)


def wait_until(is_so, seconds: float = 10.0) -> None:
    until = time.monotonic() + seconds
    while not is_so():
        assert time.monotonic() < until, "waited in vain"
        time.sleep(0.005)


def test_who_waits_together_is_predicted_together_and_answered_as_alone():
    policy = Slow()
    asked = [observation(row, step=row) for row in range(3)]
    with serving(policy, max_batch=2) as running:
        alone = [one(running.port, content, place) for place, content in enumerate(asked)]
        policy.batches.clear()
        together = held_together(running, policy, asked)
    assert policy.batches == [1, 2, 1]
    assert [found["server_timing"]["batch_size"] for found in together] == [2, 2, 1]
    for ours, theirs in zip(together, alone, strict=True):
        assert np.allclose(ours["actions"], theirs["actions"], atol=1e-5)
        assert ours["noise"] == theirs["noise"]


def test_pictures_of_other_sizes_wait_for_another_batch():
    policy = Slow()
    other = observation(1)
    other["observation.images.head"] = other["observation.images.head"][:16]
    with serving(policy) as running:
        found = held_together(running, policy, [observation(0), other, observation(2)])
    assert policy.batches == [1, 2, 1]
    assert [reply["server_timing"]["batch_size"] for reply in found] == [2, 1, 2]


def test_large_pictures_are_made_small_one_by_one(tiny):
    """Not as one batch of floats; the numbers are those of a policy that gets them whole."""
    policy = Slow()
    asked = [observation(row) for row in range(2)]
    for content in asked:
        content[HEAD] = np.random.default_rng(len(content)).integers(0, 256, (70, 90, 3), np.uint8)
    with serving(policy) as running:
        found = held_together(running, policy, asked)
    assert policy.batches == [1, 2] and policy.sizes == {(SIZE, SIZE)}
    whole = {
        key: torch.from_numpy(np.stack([[content[key]] * 2 for content in asked])).movedim(-1, 2)
        for key in (HEAD, GRIPPER)
    }
    state = torch.from_numpy(np.stack([content["observation.state"] for content in asked]))
    alone = tiny.predict(whole, state, [TASK] * 2, tiny.noise([0, 1], 0)).actions.numpy()
    assert np.array_equal(np.stack([reply["actions"] for reply in found]), alone)


@pytest.mark.parametrize(
    ("poison", "words"),
    [
        ("raise", "failed: the policy failed; the server's log says why."),
        ("nan", "failed: the policy's actions are not finite; nothing was sent to the robot."),
    ],
)
def test_a_failure_stays_with_its_request(poison, words):
    """The neighbours get their actions, and nobody gets a word of the server's inside."""
    policy = Slow(poison=poison)
    asked = [observation(0), observation(1, prompt="poison"), observation(2)]
    with serving(policy) as running:
        good, bad, fine = held_together(running, policy, asked)
        after = one(running.port, observation(), 0)
    assert policy.batches == [1, 3, 1, 1, 1, 1]
    assert isinstance(bad, ServerError) and str(bad) == words
    for reply in (good, fine, after):
        assert reply["actions"].shape == (4, 3) and np.isfinite(reply["actions"]).all()


def test_a_full_queue_is_said_at_once():
    policy = Slow()
    policy.go_on.clear()
    with serving(policy, max_waiting=1) as running, ThreadPoolExecutor(2) as threads:
        first = threads.submit(one, running.port, observation(), 0)
        assert policy.entered.wait(10)
        second = threads.submit(one, running.port, observation(), 0)
        wait_until(lambda: metric(running, "vla_mot_queue_length") == 1)
        with Client(port=running.port) as client:
            with pytest.raises(ServerError, match="busy: 1 requests wait already") as refused:
                client.infer(observation())
            assert refused.value.kind == "busy"
            policy.go_on.set()
            assert first.result()["actions"].shape == second.result()["actions"].shape == (4, 3)
            assert client.infer(observation())["noise"]["call"] == 0  # as if it had never been refused


def test_a_deadline_is_kept_while_the_policy_is_busy():
    """An error comes at the deadline, not when the policy is done; the connection and the noise go on as they were."""
    policy = Slow()
    with serving(policy) as running, Client(port=running.port) as client:
        policy.go_on.clear()
        begun = time.monotonic()
        with pytest.raises(ServerError, match="late: the deadline passed") as late:
            client.infer(observation(), deadline_ms=100)
        assert 0.09 < time.monotonic() - begun < 5 and late.value.kind == "late"
        with pytest.raises(ServerError, match="late"):  # this one never reached the policy
            client.infer(observation(), deadline_ms=50)
        policy.go_on.set()
        assert client.infer(observation(), deadline_ms=20_000)["noise"]["call"] == 0
    assert policy.batches == [1, 1]


def test_a_server_may_set_a_deadline():
    policy = Slow(seconds=0.3)
    with serving(policy, deadline_ms=30) as running, Client(port=running.port) as client:
        with pytest.raises(ServerError, match="late"):
            client.infer(observation())
        assert client.infer(observation(), deadline_ms=20_000)["actions"].shape == (4, 3)


def test_who_hangs_up_gives_the_place_back():
    policy = Slow()
    policy.go_on.clear()
    with serving(policy) as running, ThreadPoolExecutor(1) as threads:
        first = threads.submit(one, running.port, observation(), 0)
        assert policy.entered.wait(10)
        hasty = Client(port=running.port, timeout=0.3)
        with pytest.raises(Exception, match="no reply within"):
            hasty.infer(observation())
        wait_until(lambda: metric(running, "vla_mot_queue_length") == 0)
        policy.go_on.set()
        first.result()
        wait_until(lambda: metric(running, 'vla_mot_requests_total{outcome="left"}') == 1)
    assert policy.batches == [1]


def test_a_lone_client_waits_for_nobody():
    """However long the window for others is."""
    with serving(tiny_policy(), batch_window_ms=5000) as running, Client(port=running.port) as client:
        assert client.infer(observation())["server_timing"]["queue_ms"] < 2500


def test_behind_an_engine_batches_have_few_sizes():
    """Each size has programs of its own; all of them are made before the first client comes."""
    policy = Slow(engine=EngineConfig("static"))
    asked = [observation(row, step=row) for row in range(3)]
    with serving(policy, max_batch=4, warm_up=True, instructions=("a", "a longer one")) as running:
        assert policy.batches == [1, 2, 4] * 4  # two instructions, pictures as bytes and as floats
        assert len(policy.engine._forms) == 12
        policy.batches.clear()
        found = held_together(running, policy, asked)
    assert policy.batches == [1, 4]
    assert [reply["server_timing"]["batch_size"] for reply in found] == [3, 3, 3]
    with serving(tiny_policy()) as running:
        for place, (content, reply) in enumerate(zip(asked, found, strict=True)):
            eager = one(running.port, content, place)
            assert np.allclose(reply["actions"], eager["actions"], atol=1e-4)


def test_pictures_of_any_size_find_the_engine_warm():
    policy = Slow(engine=EngineConfig("static"))
    warm = {"warm_up": True, "remember_latents": True, "instructions": (TASK,)}
    with serving(policy, max_batch=2, **warm) as running:
        made = len(policy.engine._forms), len(policy.engine._encoders)
        for pictures in ({}, WIDE, {HEAD: WIDE[HEAD]}):
            reply = one(running.port, observation(step=0) | pictures | {"step": 0}, 0)
            assert reply["actions"].shape == (4, 3)
        assert (len(policy.engine._forms), len(policy.engine._encoders)) == made
