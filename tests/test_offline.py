import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import NetworkUsedError


@pytest.mark.parametrize("host", ["192.0.2.1", "example.org", b"example.org", "2001:db8::1"])
def test_remote_hosts_are_refused(host):
    with pytest.raises(NetworkUsedError):
        socket.create_connection((host, 443), timeout=1)


def test_connecting_by_address_is_refused():
    with socket.socket() as client, pytest.raises(NetworkUsedError):
        client.connect(("192.0.2.1", 443))


def test_this_machine_is_reachable():
    with socket.create_server(("127.0.0.1", 0)) as server:
        socket.create_connection(server.getsockname(), timeout=5).close()


def test_a_subprocess_finds_no_way_out():
    script = "import urllib.request as u; u.urlopen('http://example.org/', timeout=5)"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode != 0
    assert "Connection refused" in done.stderr


def test_the_hugging_face_cache_starts_empty():
    assert Path(os.environ["HF_HOME"]).name.startswith("vla-mot-tests-")
