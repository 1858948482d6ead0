"""A real server, real sockets: what clients of both kinds get from it."""

import http.client
import json
import random
import socket as socket_module

import numpy as np
import pytest
import torch
from websockets.exceptions import InvalidStatus
from websockets.sync.client import connect

from tests.infer.server.hostile import Trap, messages
from tests.infer.server.serving import TASK, observation, serving
from tests.infer.tiny_policy import GRIPPER, HEAD, frames, states
from vla_mot.infer.server.wire import decode, encode
from vla_mot.infer.session import Session
from vla_mot_client import Client, ServerError


def page(port: int, path: str, **headers: str) -> tuple[int, str]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    connection.request("GET", path, headers=headers)
    answer = connection.getresponse()
    found = answer.status, answer.read().decode()
    connection.close()
    return found


def test_a_chunk_is_the_policys_own(server, tiny):
    """The same numbers as `Policy.predict`: nothing is lost on the way."""
    with Client(port=server.port) as client:
        client.reset(seed=5)
        reply = client.infer(observation(step=2))
    pairs = {key: torch.stack((image, image), 1) for key, image in frames(1, 2).items()}
    alone = tiny.predict(pairs, states(1, 2), [TASK], tiny.noise([5], 0)).actions[0].numpy()
    assert reply["actions"].dtype == np.float32 and np.array_equal(reply["actions"], alone)
    assert reply["noise"] == {"seed": 5, "call": 0}
    assert reply["policy_timing"]["infer_ms"] <= reply["server_timing"]["infer_ms"]


def test_an_episode_is_the_sessions(server, tiny):
    """With steps and remembered frames the server acts like a session beside the robot."""
    session = Session(tiny, [9])
    with Client(port=server.port) as client:
        client.reset(seed=9)
        for step in range(7):
            action = session.act(frames(1, step), states(1, step), TASK)
            if step % 3:
                client.remember(
                    {key: observation(step=step)[key] for key in (HEAD, GRIPPER)} | {"step": step}
                )
                continue
            reply = client.infer({**observation(step=step), "step": step})
            assert np.allclose(reply["actions"][0], action[0].numpy(), atol=1e-6)
            assert reply["history"] == (
                {"source": "received", "age_steps": 3} if step else {"source": "first", "age_steps": 0}
            )


def test_the_protocol_is_openpis(server):
    """Raw: packed metadata first, then a packed reply per packed request; an error is a text, and all goes on."""
    with connect(server.address, compression=None, max_size=None) as socket:
        told = decode(socket.recv())
        assert told["robots"]["conveyor"]["cameras"] == [HEAD, GRIPPER]
        assert told["robots"]["conveyor"]["history_steps"] == 3
        socket.send(encode({"prompt": "x"}))
        assert socket.recv() == (
            "invalid: robot 'conveyor' expects the cameras observation.images.head, observation.images.gripper; "
            "missing: 'observation.images.head'."
        )
        socket.send("hello")
        assert socket.recv().startswith("invalid: a request is a binary message")
        for _ in range(2):
            socket.send(encode(observation()))
            reply = decode(socket.recv())
        assert reply["actions"].shape == (4, 3)
        assert reply["server_timing"].keys() == {"infer_ms", "queue_ms", "batch_size", "prev_total_ms"}


def test_metadata_is_plain(server):
    """openpi's client and any other language can read it."""
    with Client(port=server.port) as client:
        assert json.loads(json.dumps(client.metadata)) == client.metadata


def test_pages(tiny):
    with serving(tiny) as running, Client(port=running.port) as client:
        client.infer(observation())
        with pytest.raises(ServerError):
            client.infer({})
        assert page(running.port, "/healthz") == (200, "ok\n")
        status, text = page(running.port, "/metrics")
    assert status == 200
    for line in (
        'vla_mot_requests_total{outcome="ok"} 1',
        'vla_mot_requests_total{outcome="invalid"} 1',
        'vla_mot_history_total{source="present"} 1',
        "vla_mot_request_seconds_count 1",
        'vla_mot_batch_size_bucket{le="1"} 1',
        "vla_mot_queue_length 0",
        "vla_mot_sessions 1",
    ):
        assert line in text.splitlines(), line


def test_a_page_of_a_browser_is_turned_away(server):
    """No web page may reach a robot through the browser of whoever visits it."""
    with pytest.raises(InvalidStatus, match="403"), connect(server.address, origin="http://127.0.0.1"):
        pass


def test_too_many_clients(tiny):
    with serving(tiny, max_sessions=1) as running, Client(port=running.port) as first:
        with pytest.raises(InvalidStatus) as refused, connect(running.address):
            pass
        assert refused.value.response.status_code == 503
        assert b"busy: 1 clients are connected" in refused.value.response.body
        assert first.infer(observation())["actions"].shape == (4, 3)


def test_a_message_that_is_too_large_ends_its_own_connection_alone(tiny):
    with serving(tiny, max_message_mib=1) as running, Client(port=running.port) as other:
        with connect(running.address, max_size=None) as socket:
            socket.recv()
            socket.send(bytes(2**20 + 1))
            with pytest.raises(Exception, match="1009"):
                socket.recv()
        assert other.infer(observation())["actions"].shape == (4, 3)
        with pytest.raises(ServerError, match="takes 1048576 at most"):
            other.infer({**observation(), HEAD: np.zeros((1024, 1024, 3), np.uint8)})


def test_hostile_messages_through_a_socket(server):
    """Each gets an answer, on a connection that goes on, or ends the connection that it broke; others never notice."""
    kinds = set()
    with Client(port=server.port) as other, connect(server.address, max_size=None) as socket:
        socket.recv()
        for number, message in enumerate(messages(600, seed=1)):
            socket.send(message)
            reply = socket.recv(timeout=20)
            kinds.add("ok" if isinstance(reply, bytes) else reply.partition(":")[0])
            if number % 100 == 0:
                assert other.infer(observation())["actions"].shape == (4, 3)
        socket.send(encode({"reset": True}))
        assert decode(socket.recv())["reset"]
        socket.send(encode(observation()))
        assert decode(socket.recv())["actions"].shape == (4, 3)
    assert kinds == {"ok", "invalid"} and not Trap.sprung


def test_bytes_that_are_no_websocket(server):
    """Noise, half a handshake, broken frames: the server goes on."""
    upgrade = (
        f"GET / HTTP/1.1\r\nHost: 127.0.0.1:{server.port}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        "Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
    ).encode()
    draw = random.Random(2)
    for opening in (b"", upgrade, upgrade[:60], b"POST / HTTP/1.1\r\n\r\n", b"\x16\x03\x01\x02\x00"):
        for _ in range(5):
            with socket_module.create_connection(("127.0.0.1", server.port), timeout=10) as raw:
                raw.sendall(opening)
                if opening == upgrade:
                    assert raw.recv(12) == b"HTTP/1.1 101"
                raw.sendall(draw.randbytes(draw.randrange(1, 300)))
    with Client(port=server.port) as client:
        assert client.infer(observation())["actions"].shape == (4, 3)
