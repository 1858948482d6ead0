"""Simulated latency in closed loop: nothing changes without it, and with it nothing but when chunks arrive."""

import av
import numpy as np
import pytest
import torch

from tests.evaluate.test_closed_loop import run_watched
from vla_mot.evaluate.closed_loop import run_episodes
from vla_mot.evaluate.controllers import FunctionController, PolicyController, camera_images
from vla_mot.infer.chunking import Chunking
from vla_mot.infer.policy import Policy
from vla_mot.infer.session import Session

pytestmark = pytest.mark.sim

HORIZON = 10  # the policy's n_action_steps, of a chunk of 12


def chunk_by_chunk(policy: Policy, delay: int) -> FunctionController:
    """The arithmetic once more, by hand: asked every HORIZON steps, executed `delay` steps later from its middle on."""

    def begin(env, seed):
        session, chunks, step = Session(policy, [seed]), {}, -1

        def act(seen):
            nonlocal step
            step += 1
            state = torch.as_tensor(seen["agent_pos"])[None]
            session.remember(camera_images([seen]))
            if step % HORIZON == 0:
                chunks[step] = session.predict(state, [env.get_wrapper_attr("task")]).actions[0].numpy()
            if step < delay:
                return seen["agent_pos"][:3]  # nothing has arrived: stay
            asked = (step - delay) // HORIZON * HORIZON
            return chunks[asked][step - asked]

        return act

    return FunctionController(begin)


@pytest.mark.parametrize("delay", [0, 1, 2])
def test_the_robot_does_what_arithmetic_says(make_env, policy, delay):
    seeds = [3, 4]
    results, taken = run_watched(make_env, PolicyController(policy, delay=delay), seeds, parallel=1)
    expected, by_hand = run_watched(make_env, chunk_by_chunk(policy, delay), seeds, parallel=1)
    assert results == expected
    assert all(np.array_equal(taken[seed], by_hand[seed]) for seed in seeds)


def test_a_film_of_a_late_policy_has_one_size(make_env, policy, tmp_path):
    """Nothing is foreseen before the first chunk arrives: the row below is empty then, and nothing is squashed."""
    run_episodes(make_env, PolicyController(policy, delay=2), [3], video_seeds=[3], video_folder=tmp_path)
    with av.open(str(tmp_path / "3.mp4")) as film:
        frames = [frame.to_ndarray(format="rgb24") for frame in film.decode(video=0)]
    assert {frame.shape for frame in frames} == {(432, 384, 3)}
    assert frames[0][24:216].std() > 10 and frames[0][240:].std() < 3
    assert frames[2][240:].std() > 10
    assert np.abs(frames[0][30:210].astype(int) - frames[2][30:210]).mean() < 25, "the same cameras, as high"


@pytest.mark.parametrize("method", ["ensemble", "rtc"])
def test_late_episodes_do_not_depend_on_their_neighbours(make_env, policy, method):
    """Also those that end while a chunk is under way."""
    seeds = [3, 4, 5]
    controller = PolicyController(policy, chunks=Chunking(method), delay=3)
    alone, taken_alone = run_watched(make_env, controller, seeds, parallel=1)
    together, taken = run_watched(make_env, controller, seeds, parallel=3)
    assert {(r.seed, r.verdict, r.steps) for r in alone} == {(r.seed, r.verdict, r.steps) for r in together}
    assert all(np.allclose(taken[seed], taken_alone[seed], atol=1e-4) for seed in seeds)
