import pytest

from tests.infer.tiny_policy import tiny_policy
from vla_mot.infer.policy import Policy


@pytest.fixture(scope="session")
def policy() -> Policy:
    """Shared by the session; nothing may change it."""
    return tiny_policy()
