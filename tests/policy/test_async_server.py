"""LeRobot's asynchronous server around the policy; the stock client and real processes are in test_wheels.py."""

import logging
import pickle
from concurrent import futures

import grpc
import numpy as np
import pytest
import torch
from lerobot.async_inference.configs import PolicyServerConfig
from lerobot.async_inference.constants import SUPPORTED_POLICIES
from lerobot.async_inference.helpers import RemotePolicyConfig, TimedObservation
from lerobot.transport import services_pb2, services_pb2_grpc
from lerobot.transport.utils import send_bytes_in_chunks

from tests.policy.conftest import CHUNK, GRIPPER, HEAD, OFFSET
from vla_mot.infer.policy import Policy
from vla_mot.infer.session import Session

STATE = ("x", "y", "w", "held")
FEATURES = {
    "observation.state": {"dtype": "float32", "shape": (4,), "names": list(STATE)},
    HEAD: {"dtype": "image", "shape": (24, 40, 3), "names": ["height", "width", "channels"]},
    GRIPPER: {"dtype": "image", "shape": (24, 40, 3), "names": ["height", "width", "channels"]},
}
TASK = "pick the red block"


def seen(step: int, seconds: float | None = None, must_go: bool = False) -> TimedObservation:
    """What LeRobot's client sends at a control step: wide pictures, and a state that moves by millimetres."""
    random = np.random.default_rng(step)
    pictures = {name: random.integers(0, 256, (24, 40, 3), np.uint8) for name in ("head", "gripper")}
    state = dict(zip(STATE, (random.random(4) * 1e-3).tolist(), strict=True))
    time = step / 10 if seconds is None else seconds
    return TimedObservation(time, step, pictures | state | {"task": TASK}, must_go)


@pytest.fixture(scope="module")
def server_module(tmp_path_factory):
    """LeRobot's module makes a folder of logs where it is imported, and the root logger its own."""
    root = logging.getLogger()
    level, handlers = root.level, list(root.handlers)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("imported"))
        from vla_mot.policy import async_server
    root.setLevel(level)
    root.handlers[:] = handlers
    return async_server


@pytest.fixture
def stub(native, server_module):
    """A client of the real server over gRPC, to which it has said which policy it wants."""
    server_module.allow()
    server = grpc.server(futures.ThreadPoolExecutor(4))
    config = PolicyServerConfig(fps=10, inference_latency=0, obs_queue_timeout=0.5)
    services_pb2_grpc.add_AsyncInferenceServicer_to_server(server_module.VlaMotPolicyServer(config), server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
        stub = services_pb2_grpc.AsyncInferenceStub(channel)
        stub.Ready(services_pb2.Empty())
        ask(stub, "vla_mot", native)
        yield stub
    server.stop(None)


def ask(stub, kind: str, checkpoint) -> None:
    wanted = RemotePolicyConfig(kind, str(checkpoint), FEATURES, CHUNK)
    stub.SendPolicyInstructions(services_pb2.PolicySetup(data=pickle.dumps(wanted)))


def send(stub, observation: TimedObservation) -> None:
    stub.SendObservations(
        send_bytes_in_chunks(pickle.dumps(observation), services_pb2.Observation, silent=True)
    )


def chunk(stub) -> torch.Tensor:
    """The actions `(L, D)` that answer the newest observation."""
    data = stub.GetActions(services_pb2.Empty()).data
    assert data, "the server had nothing to answer"
    return torch.stack([action.get_action() for action in pickle.loads(data)])


def expected(native, pairs: list[tuple[int, int]]) -> list[torch.Tensor]:
    """Chunks of our own session from (history, present) frames, which it resizes as in training."""
    session, found = Session(Policy.from_pretrained(native), seeds=[0]), []
    for pair in pairs:
        frames = []
        for step in pair:
            raw = seen(step).get_observation()
            named = {HEAD: raw["head"], GRIPPER: raw["gripper"]}
            frames.append({key: torch.from_numpy(p).permute(2, 0, 1)[None] for key, p in named.items()})
        session.remember_pair(*frames)
        raw = seen(pair[1]).get_observation()
        state = torch.tensor([[raw[name] for name in STATE]], dtype=torch.float32)
        found.append(session.predict(state, [TASK]).actions[0])
    return found


def test_chunks_have_the_history_of_what_was_received_and_pictures_as_they_were_taken(stub, native):
    """Chunks are asked for at steps 0 and 7 alone; the frame of step 7 − m was sent in between."""
    send(stub, seen(0, must_go=True))
    first = chunk(stub)
    for step in range(1, 8):
        send(stub, seen(step))
    second = chunk(stub)
    wanted = expected(native, [(0, 0), (7 - OFFSET, 7)])
    torch.testing.assert_close(first, wanted[0], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(second, wanted[1], atol=1e-5, rtol=1e-5)
    (elsewhere,) = expected(native, [(0, 7)])
    assert not torch.allclose(first, elsewhere, atol=1e-3)


def test_a_new_client_finds_nothing_of_the_last_one(stub, native):
    send(stub, seen(0, must_go=True))
    before = chunk(stub)
    stub.Ready(services_pb2.Empty())
    ask(stub, "vla_mot", native)
    send(stub, seen(0, seconds=100.0, must_go=True))
    torch.testing.assert_close(chunk(stub), before)


def test_other_policies_are_refused_by_name(stub, native):
    assert SUPPORTED_POLICIES == ["vla_mot"]
    with pytest.raises(grpc.RpcError, match=r"Policy type act not supported.*vla_mot"):
        ask(stub, "act", native)
