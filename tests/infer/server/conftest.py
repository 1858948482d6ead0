import pytest

from tests.infer.server.serving import Running, serving
from tests.infer.tiny_policy import tiny_policy
from vla_mot.infer.policy import Policy


@pytest.fixture(scope="package")
def tiny() -> Policy:
    """Chunks of 4 actions, history 3 frames back; nothing may change it."""
    return tiny_policy()


@pytest.fixture(scope="package")
def server(tiny) -> Running:
    """A server that many tests share: each connects on its own."""
    with serving(tiny) as running:
        yield running
