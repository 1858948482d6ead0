"""What openpi's own client asks of a server: it cuts every array of a reply along the chunk, and knows no more."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from tests.infer.server.serving import observation
from tests.infer.tiny_policy import GRIPPER, HEAD
from vla_mot_client import Client

PLAIN = (str, int, float, bool, type(None))


def leaves(value: Any) -> Iterator[Any]:
    if isinstance(value, dict | list):
        for item in value.values() if isinstance(value, dict) else value:
            yield from leaves(item)
    else:
        yield value


def test_every_array_of_a_reply_has_a_row_for_every_step_of_the_chunk(server, tiny):
    """Whether the chunk is free, goes on with the last one, or with what the client brought."""
    rows = tiny.spec.model.chunk_size
    asked = [
        {**observation(), "step": 0},
        {**observation(step=1), "step": 1, "delay": 1},
        {**observation(), "delay": 1, "left_over": np.full((2, 3), 0.05)},
    ]
    with Client(port=server.port) as client:
        replies = [client.infer(content) for content in asked]
    assert [reply["continued"] is not None for reply in replies] == [False, True, True]
    for reply in replies:
        found = list(leaves(reply))
        arrays = [value for value in found if isinstance(value, np.ndarray)]
        assert arrays and all(len(array) == rows for array in arrays)
        assert all(isinstance(value, (np.ndarray, *PLAIN)) for value in found)


def test_its_client_drives_the_server_unchanged(server, tiny):
    """Alone, and behind its broker, which hands out one action of a chunk after the other."""
    pytest.importorskip(
        "openpi_client", reason="openpi-client pins numpy<2, and so is no part of this environment"
    )
    from openpi_client.action_chunk_broker import ActionChunkBroker
    from openpi_client.websocket_client_policy import WebsocketClientPolicy

    rows = tiny.spec.model.chunk_size
    with Client(port=server.port) as client:
        expected = [client.infer(observation(step=step))["actions"] for step in (0, 5)]
    policy = WebsocketClientPolicy("127.0.0.1", server.port)
    assert policy.get_server_metadata()["robots"]["conveyor"]["cameras"] == [HEAD, GRIPPER]
    found = policy.infer(observation())["actions"]
    assert found.dtype == np.float32 and np.array_equal(found, expected[0])
    with pytest.raises(RuntimeError, match="invalid: robot 'conveyor' expects the cameras"):
        policy.infer({"prompt": "pick"})
    broker = ActionChunkBroker(policy, action_horizon=rows)
    acted = [broker.infer(observation(step=5))["actions"] for _ in range(rows)]
    assert np.array_equal(acted, expected[1])
    policy._ws.close()
