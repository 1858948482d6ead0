"""`vla-mot serve`: a checkpoint becomes a server, and a signal ends it when what came was answered."""

import re
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tests.infer.tiny_policy import known_robot, tiny_policy
from vla_mot.commands.serve import ServeConfig, open_policies
from vla_mot.hub.spec import PolicySpec, SamplerConfig
from vla_mot.infer.policy import Policy
from vla_mot.infer.server.access import TOKEN_VARIABLE
from vla_mot_client import Client

NANO = Path(__file__).parents[1] / "goldens" / "nano"


@pytest.mark.multiprocess
def test_a_server_until_its_signal(tmp_path):
    """The whole command in a process of its own, with a client, to its exit code."""
    (tmp_path / "token").write_text("a-token-of-some-length\n")
    words = [
        "serve",
        f"checkpoint={NANO}",
        "port=0",
        f"token_file={tmp_path / 'token'}",
        "num_steps=2",
        "engine=static",
    ]
    command = [sys.executable, "-m", "vla_mot.commands.main", *words]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        try:
            told = process.stdout.readline()
            assert re.match(r"conveyor +conveyor/delta, 2 .*, engine static, on cpu", told), told
            address = process.stdout.readline()
            port = int(re.search(r"serving on ws://127\.0\.0\.1:(\d+); stop with Ctrl-C", address)[1])
            with Client(port=port, token="a-token-of-some-length") as client:
                robot = client.metadata["robots"]["conveyor"]
                seen = dict.fromkeys(robot["cameras"], np.zeros((32, 32, 3), np.uint8))
                reply = client.infer(
                    {**seen, "observation.state": np.zeros(robot["state_dim"]), "prompt": "go"}
                )
                assert reply["actions"].shape == (robot["chunk_size"], robot["action_dim"])
                process.send_signal(signal.SIGTERM)
                assert process.wait(30) == 0
            assert "stopping; requests that are still answered first: 0" in process.stdout.read()
        finally:
            process.kill()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["host=0.0.0.0"], "host=0.0.0.0 is reached from other machines, and there is no token"),
        (["port=70000"], "port must lie in 0 … 65535, got 70000"),
        (["max_batch=0"], "max_batch must be at least 1"),
        (["missing_history=none"], "missing_history: 'none'"),
        (["tls_cert=cert.pem"], "TLS needs both"),
        (["token_file=nowhere"], "token_file=nowhere cannot be read"),
        (["robot=conveyer"], "the policy knows no robot with embodiment 'conveyer'"),
        (["device=tpu"], "no such device"),
        (["dtype=float16"], "Known: bfloat16, float32"),
        (["prot=8000"], "port"),
        (["engine=static", "engine.understanding_ahead=true"], "a server answers whoever comes next"),
    ],
)
def test_what_does_not_fit(vla_mot, monkeypatch, words, message):
    monkeypatch.delenv(TOKEN_VARIABLE, raising=False)
    said = vla_mot("serve", f"checkpoint={NANO}", *words)
    assert (said.code, message in said.err) == (2, True), said.err


def test_an_unsafe_address_is_refused_before_a_checkpoint_is_read(vla_mot, monkeypatch, tmp_path):
    monkeypatch.delenv(TOKEN_VARIABLE, raising=False)
    said = vla_mot("serve", f"checkpoint={tmp_path / 'nowhere'}", "host=::")
    assert (said.code, "there is no token" in said.err) == (2, True)


def test_the_robots_of_a_checkpoint(tmp_path):
    """All of them on one model, or the one that was asked for, sampled as asked."""
    base = tiny_policy(max_state_dim=8, max_action_dim=8)
    body = base.robot.embodiment.name
    robots = (base.robot, known_robot("franka", 4), known_robot("franka", 4, "abs"))
    several = Policy(base.model, PolicySpec(base.spec.model, robots, SamplerConfig(3, 3)))
    several.save_pretrained(tmp_path / "p")

    def served(**asked: object) -> dict[str, Policy]:
        return open_policies(ServeConfig(checkpoint=str(tmp_path / "p"), **asked))

    found = served(num_steps=2, solver="heun", n_action_steps=1)
    assert list(found) == [body, "franka/delta", "franka/abs"]
    assert [str(policy.robot) for policy in found.values()] == [f"{body}/delta", "franka/delta", "franka/abs"]
    assert len({id(policy.model) for policy in found.values()}) == 1
    assert {policy.spec.sampler for policy in found.values()} == {SamplerConfig(2, 1, "heun")}
    assert list(served(robot="franka", action_mode="abs")) == ["franka"]
    assert list(served(action_mode="delta")) == [body, "franka"]


def test_without_its_extra_it_says_what_to_install(vla_mot, monkeypatch):
    for name in ("vla_mot.commands.serve", "vla_mot.infer.server.server"):
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "websockets.asyncio.server", None)  # as if it were not installed
    said = vla_mot("serve", f"checkpoint={NANO}")
    assert (said.code, "pip install 'vla-mot[serve]'" in said.err) == (2, True), said.err
