"""One action per step from chunks behind a server."""

import numpy as np
import pytest
import torch

from tests.infer.server.serving import TASK, observation, serving
from tests.infer.tiny_policy import GRIPPER, HEAD, tiny_policy
from vla_mot.infer.session import Session
from vla_mot_client import Client, Driver


def seen(step: int) -> tuple[dict[str, np.ndarray], np.ndarray]:
    told = observation(step=step)
    return {key: told[key] for key in (HEAD, GRIPPER)}, told["observation.state"]


@pytest.fixture
def client(server):
    with Client(port=server.port) as client:
        yield client


def test_it_acts_as_a_session_does(tiny, client):
    """Over four chunks of three steps with a history of three; nothing is sent that nobody needs."""
    driver, session = Driver(client, execute=2), Session(tiny.with_sampler(n_action_steps=2), seeds=[4])
    driver.reset(seed=4)
    for step in range(8):
        pictures, state = seen(step)
        torch_pictures = {key: torch.from_numpy(p).movedim(-1, 0) for key, p in pictures.items()}
        expected = session.act(torch_pictures, torch.from_numpy(state), TASK)
        np.testing.assert_allclose(driver.act(pictures, state, TASK), expected, atol=1e-6)
    assert driver.reply["history"] == {"source": "received", "age_steps": 3}


def test_what_is_not_looked_at_need_not_be_rendered(client):
    driver = Driver(client)  # three of four steps, history three steps back: only the asking ones look
    assert (driver.execute, driver.history_steps, driver.cameras) == (3, 3, [HEAD, GRIPPER])
    asking = []
    for step in range(6):
        asking.append(driver.looks)
        driver.act(*(seen(step) if driver.looks else (None, None)), TASK)
    assert asking == [True, False, False] * 2
    with pytest.raises(ValueError, match="step 6 needs pictures and the state"):
        driver.act(None, None, TASK)


def test_without_history_only_the_asking_steps_look():
    policy = tiny_policy(n_action_steps=2, generation=None, foresight=None)
    with serving(policy, missing_history="error") as running, Client(port=running.port) as client:
        driver, looked = Driver(client), []
        for step in range(4):
            looked.append(driver.looks)
            assert driver.act(*(seen(step) if driver.looks else (None, None)), TASK).shape == (3,)
    assert looked == [True, False] * 2


def test_an_action_is_the_callers_own(client):
    driver = Driver(client)
    driver.act(*seen(0), TASK)[:] = 0
    assert np.any(driver.reply["actions"][0] != 0)


def test_where_several_robots_are_served_one_is_named(tiny):
    with serving({"left": tiny, "right": tiny}) as running, Client(port=running.port) as client:
        with pytest.raises(ValueError, match="the server drives left, right; say robot="):
            Driver(client)
        driver = Driver(client, robot="right")
        driver.reset()
        assert driver.act(*seen(0), TASK).shape == (3,)
