"""A long inference, and an end in the midst of one."""

import asyncio
import re
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from torch import Tensor
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import connect

from tests.infer.server.serving import observation, serving
from tests.infer.server.test_batching import Slow, metric, one, wait_until
from tests.infer.server.test_server import page
from vla_mot.batch import ActionChunk
from vla_mot.errors import ConfigError
from vla_mot.infer.server.config import ServerConfig
from vla_mot.infer.server.server import PolicyServer
from vla_mot.infer.server.wire import decode, encode
from vla_mot_client import Client, ServerError


def test_pings_are_answered_during_an_inference_longer_than_their_timeout():
    """In both directions: the server's own pings would end the connection too."""
    policy = Slow()
    policy.go_on.clear()
    with (
        serving(policy, ping_seconds=0.5) as running,
        connect(running.address, ping_interval=0.5, ping_timeout=0.5) as socket,
    ):
        socket.recv()
        socket.send(encode(observation()))
        assert policy.entered.wait(10)
        begun = time.monotonic()
        while time.monotonic() < begun + 1.5:
            assert socket.ping().wait(5)
            assert page(running.port, "/healthz") == (200, "ok\n")
            time.sleep(0.1)
        assert policy.batches == []
        policy.go_on.set()
        assert decode(socket.recv(timeout=10))["policy_timing"]["infer_ms"] > 1400


def test_a_batch_that_takes_too_long_is_ill_health():
    policy = Slow()
    policy.go_on.clear()
    with serving(policy, stuck_seconds=0.2) as running, ThreadPoolExecutor(1) as threads:
        assert metric(running, "vla_mot_batch_age_seconds") == 0
        asked = threads.submit(one, running.port, observation(), 0)
        wait_until(lambda: page(running.port, "/healthz")[0] == 503)
        assert page(running.port, "/healthz")[1] == "stuck: one batch has taken more than 0.2 s\n"
        assert metric(running, "vla_mot_batch_age_seconds") > 0.2
        policy.go_on.set()
        asked.result()
        assert page(running.port, "/healthz") == (200, "ok\n")
        assert metric(running, "vla_mot_batch_age_seconds") == 0


def test_failures_in_a_row_are_ill_health():
    """One answer between two failures, or after them, and all is well."""
    with serving(Slow(poison="raise"), failing_after=2) as running:
        found = []
        for prompt in ("poison", "go", "poison", "poison", "go"):
            one(running.port, observation(prompt=prompt), 0)
            found.append(page(running.port, "/healthz"))
    ill = (503, "failing: of the last 2 batches no request could be answered\n")
    assert found == [(200, "ok\n")] * 3 + [ill, (200, "ok\n")]


def test_an_end_during_the_warm_up_waits_for_nothing():
    policy = Slow()
    policy.go_on.clear()

    async def run() -> None:
        server = PolicyServer(ServerConfig(port=0))
        running = asyncio.create_task(server.run({"conveyor": policy}, lambda address: pytest.fail(address)))
        await asyncio.to_thread(policy.entered.wait, 10)
        server.stop()
        assert await asyncio.wait_for(running, 5)
        assert server.busy

    try:
        asyncio.run(run())
    finally:
        policy.go_on.set()


def test_a_policy_without_finite_actions_is_refused_before_anybody_connects():
    server = PolicyServer(ServerConfig(port=0, instructions=("poison",)))
    policies = {"conveyor": Slow(poison="nan")}
    with pytest.raises(ConfigError, match=r"warm-up .* got no actions: .*not finite"):
        asyncio.run(server.run(policies, lambda address: pytest.fail(address)))
    assert not server.busy and server._service.stopping


def test_a_warm_up_that_fails_otherwise_is_not_said_to_be_the_address():
    class Full(Slow):
        def predict(self, *others: Any, **options: Any) -> ActionChunk:
            raise OSError("no space left on device")

    server = PolicyServer(ServerConfig(port=0))
    with pytest.raises(OSError, match="no space left"):
        asyncio.run(server.run({"conveyor": Full()}, lambda address: pytest.fail(address)))
    assert server._service.stopping


STUCK = """
import asyncio
from tests.infer.server.test_batching import Slow
from vla_mot.commands.serve import leave
from vla_mot.infer.server.config import ServerConfig
from vla_mot.infer.server.server import PolicyServer
server = PolicyServer(ServerConfig(port=0, drain_seconds=0.2, warm_up=False))
ready = lambda address: print(address, flush=True)
answered = asyncio.run(server.run({"conveyor": Slow(seconds=60)}, ready, signals=True))
leave(answered, server.busy)
"""


@pytest.mark.multiprocess
def test_a_stuck_inference_does_not_keep_the_process(repository):
    """It ends after the drain, with a code that says so."""
    command = [sys.executable, "-c", STUCK]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=repository) as process:
        try:
            port = int(re.search(r":(\d+)$", process.stdout.readline())[1])
            with connect(f"ws://127.0.0.1:{port}") as socket:
                socket.recv()
                socket.send(encode(observation()))
                wait_until(lambda: "batch_age_seconds 0.0\n" not in page(port, "/metrics")[1])
                process.send_signal(signal.SIGTERM)
                assert socket.recv(timeout=10) == "stopping: the server ends."
            assert process.wait(10) == 1
        finally:
            process.kill()


def test_what_is_under_way_is_answered_before_the_end():
    policy = Slow()
    policy.go_on.clear()
    with (
        serving(policy) as running,
        ThreadPoolExecutor(2) as threads,
        connect(running.address) as idle,
        Client(port=running.port, patience=0) as late,
    ):
        idle.recv()
        asked = [threads.submit(one, running.port, observation(), 0)]
        assert policy.entered.wait(10)
        asked.append(threads.submit(one, running.port, observation(), 0))
        wait_until(lambda: metric(running, "vla_mot_queue_length") == 1)
        running.stop()
        wait_until(lambda: page(running.port, "/healthz") == (503, "stopping\n"))
        with pytest.raises(ServerError, match="stopping: the server ends and takes no more"):
            late.infer(observation())
        with pytest.raises(InvalidStatus, match="503"), connect(running.address):
            pass
        policy.go_on.set()
        assert [found.result()["actions"].shape for found in asked] == [(4, 3), (4, 3)]
        with pytest.raises(ConnectionClosed) as closed:
            idle.recv(timeout=10)
        assert closed.value.rcvd is not None and closed.value.rcvd.code == 1001


def test_an_end_does_not_wait_for_ever():
    """Whoever cannot be answered in time is told so, and closed like the others."""
    policy = Slow()
    policy.go_on.clear()
    with serving(policy, drain_seconds=0.2) as running, connect(running.address) as socket:
        socket.recv()
        socket.send(encode(observation()))
        assert policy.entered.wait(10)
        begun = time.monotonic()
        threading.Timer(5, policy.go_on.set).start()
        running.stop()
        assert socket.recv(timeout=5) == "stopping: the server ends."
        with pytest.raises(ConnectionClosed, match="1001"):
            socket.recv(timeout=5)
        assert time.monotonic() - begun < 4
        policy.go_on.set()


def test_of_a_batch_that_is_tried_one_by_one_everybody_is_told_of_the_end():
    """Also those whose turn had not come."""

    class Alone(Slow):
        """Fails on two at once, and takes its time with one."""

        def predict(self, images: Any, state: Tensor, *others: Any, **options: Any) -> ActionChunk:
            if len(state) > 1:
                raise RuntimeError("one of them is at fault")
            return super().predict(images, state, *others, **options)

    policy = Alone()
    policy.go_on.clear()
    with (
        serving(policy, drain_seconds=0.2, batch_window_ms=5000) as running,
        ThreadPoolExecutor(2) as threads,
        Client(port=running.port, patience=0) as one,
        Client(port=running.port, patience=0) as other,
    ):
        asked = [threads.submit(client.infer, observation()) for client in (one, other)]
        assert policy.entered.wait(10)
        running.stop()
        try:
            assert [str(told.exception(10)) for told in asked] == ["stopping: the server ends."] * 2
        finally:
            policy.go_on.set()
