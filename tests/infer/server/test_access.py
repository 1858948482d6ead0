"""Who may connect: addresses, tokens, certificates."""

import asyncio
import logging
import shutil
import subprocess

import pytest
from websockets.sync.client import connect

from tests.infer.server.serving import observation, serving
from tests.infer.server.test_server import page
from vla_mot.errors import ConfigError
from vla_mot.infer.server.access import TOKEN_VARIABLE, is_loopback, may_enter, read_token
from vla_mot.infer.server.config import ServerConfig
from vla_mot.infer.server.server import PolicyServer
from vla_mot_client import Client, ConnectionLostError

TOKEN = "correct-horse-battery"


@pytest.fixture
def token_file(tmp_path):
    (tmp_path / "token").write_text(f"{TOKEN}\n")
    return tmp_path / "token"


@pytest.mark.parametrize(
    ("authorization", "enters"),
    [
        (f"Bearer {TOKEN}", True),
        (f"bearer  {TOKEN}", True),
        (f"Api-Key {TOKEN}", True),  # openpi's client
        (f"Basic {TOKEN}", False),
        (TOKEN, False),
        (f"Bearer {TOKEN}x", False),
        (f"Bearer {TOKEN[:-1]}", False),
        ("Bearer é", False),
        ("Bearer", False),
        ("", False),
        (None, False),
    ],
)
def test_a_token(authorization, enters):
    assert may_enter(authorization, TOKEN) is enters
    assert may_enter(authorization, None)


def test_only_who_has_the_token_gets_in(tiny, token_file):
    with serving(tiny, token_file=token_file) as running:
        with Client(port=running.port, token=TOKEN) as client:
            assert client.infer(observation())["actions"].shape == (4, 3)
        key = {"Authorization": f"Api-Key {TOKEN}"}
        with connect(running.address, additional_headers=key) as socket:
            assert socket.recv()
        for wrong in (None, TOKEN + "x"):
            with pytest.raises(ConnectionLostError, match="HTTP 401 this server asks for a token"):
                Client(port=running.port, token=wrong).metadata  # noqa: B018
        assert page(running.port, "/healthz")[0] == 200
        assert page(running.port, "/metrics")[0] == 401
        assert page(running.port, "/metrics", Authorization=f"Bearer {TOKEN}")[0] == 200


def test_where_the_token_comes_from(monkeypatch, token_file, tmp_path):
    monkeypatch.delenv(TOKEN_VARIABLE, raising=False)
    assert read_token(ServerConfig()) is None
    assert read_token(ServerConfig(token_file=token_file)) == TOKEN
    monkeypatch.setenv(TOKEN_VARIABLE, "x" * 16)
    assert read_token(ServerConfig()) == "x" * 16
    assert read_token(ServerConfig(token_file=token_file)) == TOKEN
    for bad in ("short", "", "two words of some length", "ä" * 20):
        monkeypatch.setenv(TOKEN_VARIABLE, bad)
        with pytest.raises(ConfigError, match=f"{TOKEN_VARIABLE}: a token is one word") as refused:
            read_token(ServerConfig())
        assert not bad or bad not in str(refused.value)
    with pytest.raises(ConfigError, match="cannot be read"):
        read_token(ServerConfig(token_file=tmp_path / "nowhere"))


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "10.0.0.7", "robot.local", ""])
def test_the_network_needs_a_token_or_a_word(host, token_file, caplog, monkeypatch):
    monkeypatch.delenv(TOKEN_VARIABLE, raising=False)
    with pytest.raises(ConfigError, match="is reached from other machines, and there is no token"):
        PolicyServer(ServerConfig(host=host))
    PolicyServer(ServerConfig(host=host, insecure=True))
    assert not caplog.records
    with caplog.at_level(logging.WARNING):
        PolicyServer(ServerConfig(host=host, token_file=token_file))
    assert "unencrypted" in caplog.text


def test_loopback():
    assert [is_loopback(host) for host in ("127.0.0.1", "127.1.2.3", "::1", "localhost")] == [True] * 4


def test_an_address_that_cannot_be_listened_on(tiny, server):
    taken = PolicyServer(ServerConfig(port=server.port))
    with pytest.raises(ConfigError, match=f"port={server.port}: cannot listen there"):
        asyncio.run(taken.run({"conveyor": tiny}))


@pytest.fixture(scope="module")
def certificate(tmp_path_factory):
    if shutil.which("openssl") is None:
        pytest.skip("no openssl on this machine to make a certificate with")
    folder = tmp_path_factory.mktemp("tls")
    made = [
        "-keyout",
        folder / "key.pem",
        "-out",
        folder / "cert.pem",
        "-days",
        "2",
        "-subj",
        "/CN=localhost",
    ]
    request = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", *made]
    subprocess.run([*request, "-addext", "subjectAltName=IP:127.0.0.1"], check=True, capture_output=True)
    return folder


def test_tls(tiny, certificate):
    cert, key = certificate / "cert.pem", certificate / "key.pem"
    with serving(tiny, tls_cert=cert, tls_key=key) as running:
        assert running.address.startswith("wss://")
        with Client(port=running.port, tls=cert) as client:
            assert client.infer(observation())["actions"].shape == (4, 3)
        with pytest.raises(ConnectionLostError, match="CERTIFICATE_VERIFY_FAILED"):
            Client(port=running.port, tls=True, patience=0).metadata  # noqa: B018
        with pytest.raises(ConnectionLostError):
            Client(port=running.port, patience=0, timeout=2).metadata  # noqa: B018


def test_certificates_that_do_not_fit(certificate):
    cert, key = certificate / "cert.pem", certificate / "key.pem"
    for config, words in (
        ({"tls_cert": cert}, "needs both tls_cert"),
        ({"tls_cert": cert, "tls_key": cert}, "tls_key="),
        ({"tls_cert": certificate / "nowhere", "tls_key": key}, "No such file"),
    ):
        with pytest.raises(ConfigError, match=words):
            PolicyServer(ServerConfig(**config))
