import pytest
from tests.model.tiny import tiny_batch, tiny_model

from vla_mot.batch import Batch
from vla_mot.model.model import VlaMotModel


@pytest.fixture(scope="session")
def model() -> VlaMotModel:
    """Shared by the session: tests that change weights or settings build their own."""
    return tiny_model().eval()


@pytest.fixture
def batch() -> Batch:
    return tiny_batch()
