"""The client without torch: what it sends again, what it does not, and that it needs nothing else."""

import importlib
import re
import socket as socket_module
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from email.parser import HeaderParser
from pathlib import Path

import msgpack
import numpy as np
import pytest
from websockets.server import ServerProtocol
from websockets.sync.server import serve

from tests.infer.server.serving import observation, serving
from tests.infer.tiny_policy import GRIPPER, HEAD
from vla_mot_client import Client, ClientError, ConnectionLostError, ServerError, decode, encode

BLOCKED = ("torch", "vla_mot", "transformers", "lerobot", "hydra")


def test_nothing_but_numpy_msgpack_and_websockets(server):
    """A whole conversation in a Python in which torch and vla_mot cannot be imported."""
    code = f"""
import sys
for name in {BLOCKED!r}:
    sys.modules[name] = None
import numpy as np
from vla_mot_client import Client
with Client(port={server.port}) as client:
    robot = client.metadata["robots"]["conveyor"]
    picture = np.zeros((32, 32, 3), np.uint8)
    seen = dict.fromkeys(robot["cameras"], picture)
    reply = client.infer({{**seen, "observation.state": np.zeros(4), "prompt": "go", "step": 0}})
    print(reply["actions"].shape, reply["history"]["source"])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert (done.stdout, done.stderr) == ("(4, 3) first\n", "")


def test_the_servers_words_are_an_exception_and_the_connection_goes_on(server):
    with Client(port=server.port) as client:
        with pytest.raises(ServerError, match="invalid: unknown key 'camera'") as refused:
            client.infer({"camera": 1})
        assert refused.value.kind == "invalid" and isinstance(refused.value, ClientError)
        assert client.infer(observation())["actions"].shape == (4, 3)
        assert client.connections == 1


def test_it_waits_for_a_server_that_is_not_there_yet_and_no_longer(tiny):
    with serving(tiny) as running:
        port = running.port
    client = Client(port=port, patience=0.3)
    begun = time.monotonic()
    with pytest.raises(ConnectionLostError, match=f"cannot connect to ws://127.0.0.1:{port}"):
        client.infer(observation())
    assert time.monotonic() - begun < 3


def test_it_connects_again_and_its_seed_goes_with_it(tiny):
    """The session is a new one, which the reply says; the seed is the client's."""
    with serving(tiny) as first:
        client = Client(port=first.port)
        client.reset(seed=3)
        client.infer(observation())
    with serving(tiny, port=first.port):
        reply = client.infer({**observation(step=5), "step": 5})
        assert reply["history"] == {"source": "first", "age_steps": 0}
        assert reply["noise"] == {"seed": 3, "call": 0}
        assert client.connections == 2
        client.close()


class Strange:
    """A server of another make: sends metadata, then whatever it is told to, or `a` of the request back as `x`."""

    def __init__(self, *replies: bytes | str | None, pause: float = 0.0) -> None:
        self.replies, self.pause, self.asked = list(replies), pause, []

    def __enter__(self) -> "Strange":
        self.server = serve(self._talk, "127.0.0.1", 0)
        self.port = self.server.socket.getsockname()[1]
        self.thread = threading.Thread(target=self.server.serve_forever)
        self.thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self.server.shutdown()
        self.thread.join()

    def _talk(self, socket) -> None:
        socket.send(encode({"server": "strange"}))
        for message in socket:
            self.asked.append(decode(message))
            time.sleep(self.pause)
            reply = self.replies.pop(0) if self.replies else encode({"x": self.asked[-1]["a"]})
            if reply is None:
                return  # hangs up
            socket.send(reply)


def test_a_request_under_which_the_connection_broke_is_sent_once_more():
    with Strange(encode({"x": 1}), None) as server, Client(port=server.port) as client:
        assert [client.infer({"a": 1})["x"], client.infer({"a": 2})["x"]] == [1, 2]
        assert [asked["a"] for asked in server.asked] == [1, 2, 2] and client.connections == 2


def test_one_that_breaks_twice_is_given_up():
    with Strange(None, None) as server, Client(port=server.port) as client:
        with pytest.raises(ConnectionLostError, match="hung up"):
            client.infer({"a": 1})
        assert client.infer({"a": 3})["x"] == 3


def test_a_late_reply_is_never_taken_for_the_next_ones():
    with Strange(pause=0.4) as server:
        with Client(port=server.port, timeout=0.2) as client:
            with pytest.raises(ConnectionLostError, match=r"gave no reply within 0.2 s"):
                client.infer({"a": 1})
            client.timeout = 5
            assert client.infer({"a": 2})["x"] == 2
        assert [asked["a"] for asked in server.asked] == [1, 2]


def test_a_link_that_takes_nothing_is_given_up_in_time():
    """The request is larger than what the two kernels hold for a peer that never reads."""
    with socket_module.create_server(("127.0.0.1", 0)) as listening, ThreadPoolExecutor(1) as threads:
        stalled = threads.submit(greet_and_never_read, listening)
        with Client(port=listening.getsockname()[1], timeout=0.5, patience=0) as client:
            begun = time.monotonic()
            with pytest.raises(ConnectionLostError, match=r"gave no reply within 0.5 s"):
                client.infer({"a": bytes(64 * 2**20)})
            assert time.monotonic() - begun < 3
        stalled.result().close()


def test_sending_leaves_the_timeout_of_the_socket_alone(server):
    """Websockets before 17 reads with it, so that a silence as long ended the connection."""
    with Client(port=server.port, timeout=5) as client:
        client.reset(seed=1)
        client.infer(observation())
        assert client._socket.socket.gettimeout() is None


def test_it_connects_directly(server, monkeypatch):
    """Whatever proxy the environment names for everything else."""
    for name in ("ws_proxy", "http_proxy", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")  # nobody listens there
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    with Client(port=server.port, patience=0) as client:
        assert client.infer(observation())["actions"].shape == (4, 3)


def greet_and_never_read(listening: socket_module.socket) -> socket_module.socket:
    """A handshake and empty metadata, then nothing."""
    link, _ = listening.accept()
    protocol = ServerProtocol()
    while not (asked := protocol.events_received()):
        protocol.receive_data(link.recv(4096))
    protocol.send_response(protocol.accept(asked[0]))
    protocol.send_binary(encode({}))
    link.sendall(b"".join(protocol.data_to_send()))
    return link


BROKEN = [
    {b"__ndarray__": True},
    {b"__ndarray__": True, b"data": 1, b"dtype": "<f4", b"shape": [1]},
    {b"__ndarray__": True, b"data": b"", b"dtype": "f4,", b"shape": None},
    {b"__ndarray__": True, b"data": bytes(4), b"dtype": [[1]], b"shape": [1]},
    {b"__npgeneric__": True, b"data": 10**9, b"dtype": "|u1"},
    {b"__npgeneric__": True},
]


@pytest.mark.parametrize("reply", [msgpack.packb({"a": value}) for value in BROKEN] + [b"\x81" * 3000])
def test_a_damaged_reply_is_the_documented_error(reply):
    with pytest.raises(ValueError):
        decode(reply)


@pytest.mark.parametrize(
    "reply",
    [
        b"\xc1",
        b"\x01",
        encode({})[:0],
        bytes.fromhex("81a161c4"),
        msgpack.packb({"a": {b"__ndarray__": True}}),
    ],
)
def test_what_is_no_reply_is_no_reply(reply):
    with Strange(reply) as server, Client(port=server.port) as client:
        with pytest.raises(ConnectionLostError, match="no message of the protocol"):
            client.infer({"a": 1})
        assert client.infer({"a": 2})["x"] == 2


def test_an_error_of_another_server_is_passed_on():
    with Strange("Traceback (most recent call last): …") as server, Client(port=server.port) as client:
        with pytest.raises(ServerError, match="Traceback") as refused:
            client.infer({})
        assert refused.value.kind == "unknown"


@pytest.mark.parametrize("value", [object(), np.array([object()]), np.array(["text"]), np.array([1j])])
def test_what_cannot_be_sent_is_said_before_it_is(server, value):
    with Client(port=server.port) as client:
        with pytest.raises(TypeError, match="cannot send a"):
            client.infer({"x": value})
        assert client.infer(observation())["actions"].shape == (4, 3)


def test_an_object_array_is_not_read():
    from tests.infer.server.hostile import PICKLE, Trap, packed_array

    with pytest.raises(ValueError):
        decode(encode({"x": packed_array(PICKLE, "|O", [1])}))
    assert not Trap.sprung


def test_the_loop_of_the_page_drives_a_robot(repository, server):
    """Word for word, but for the port; after the first steps it always has the frame of m steps ago."""
    (example,) = re.findall(r"```python\n(.*?)```", (repository / "docs/serving.md").read_text(), re.DOTALL)
    example = example.replace("8000", str(server.port)).replace(
        "robot.act(", "sources.append(reply['history']['source']); robot.act("
    )
    sources, acted = [], []

    class Robot:
        def look(self):
            seen = observation(step=len(acted))
            return {key: seen[key] for key in (HEAD, GRIPPER)}, seen["observation.state"]

        def act(self, action):
            acted.append(action)

    exec(example, {"robot": Robot(), "steps": 8, "task": "pick the red block", "sources": sources})
    assert np.shape(acted) == (8, 3)
    assert sources == ["first"] * 3 + ["received"] * 5


def run(command: list[str | Path], cwd: Path) -> str:
    done = subprocess.run(list(map(str, command)), cwd=cwd, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_a_clean_environment(repository, server, tmp_path):
    """The wheel and what it asks for, in an environment of its own, against a real server."""
    uv = [sys.executable, "-m", "uv", "--quiet", "--offline"]
    package, venv = repository / "packages" / "vla_mot_client", tmp_path / "venv"
    run([*uv, "build", "--wheel", "--no-build-isolation", "--out-dir", tmp_path, package], repository)
    (wheel,) = tmp_path.glob("vla_mot_client-*.whl")
    run([*uv, "venv", "--python", sys.executable, venv], tmp_path)
    run([*uv, "pip", "install", "--no-deps", "--python", venv / "bin" / "python", wheel], tmp_path)
    (site,) = venv.glob("lib/python*/site-packages")
    for name in needed(site):
        for folder in (name, f"{name}.libs"):
            found = Path(str(importlib.import_module(name).__file__)).parents[1] / folder
            if found.exists():
                (site / folder).symlink_to(found)
    code = (
        "import numpy as np; from vla_mot_client import Client\n"
        f"with Client(port={server.port}) as client:\n"
        "    cameras = client.metadata['robots']['conveyor']['cameras']\n"
        "    seen = dict.fromkeys(cameras, np.zeros((32, 32, 3), np.uint8))\n"
        "    print(client.infer({**seen, 'observation.state': np.zeros(4), 'prompt': 'go'})['actions'].shape)"
    )
    assert run([venv / "bin" / "python", "-I", "-c", code], tmp_path) == "(4, 3)\n"


def needed(site: Path) -> set[str]:
    """The distributions that the installed client asks for."""
    (metadata,) = site.glob("vla_mot_client-*.dist-info/METADATA")
    asked = HeaderParser().parsestr(metadata.read_text()).get_all("Requires-Dist")
    found = {re.split(r"[^\w]", need)[0] for need in asked}
    assert found == {"numpy", "msgpack", "websockets"}
    return found
