"""RoboTwin's policy interface around a real server: history, chunks, deltas and grippers are those of the policy."""

import re
import signal
import subprocess
import sys

import numpy as np
import pytest
import torch

from tests.infer.server.aloha import EXECUTED, INSTRUCTION, JOINTS, PAST, ToyTask, aloha_policy
from tests.infer.server.serving import serving
from vla_mot.infer.session import Session
from vla_mot_client import robotwin
from vla_mot_client.robotwin import CAMERAS, GRIPPERS

SEED = 5
ARMS = [dim for dim in range(JOINTS) if dim not in GRIPPERS]


@pytest.fixture(scope="module")
def policy():
    return aloha_policy()


@pytest.fixture(scope="module")
def port(policy):
    with serving({"aloha": policy}) as running:
        yield running.port


def connect(port: int, **more):
    return robotwin.get_model(
        {"host": "127.0.0.1", "port": port, "noise_seed": SEED, "task_name": "any"} | more
    )


def pictures(seen: dict) -> dict[str, torch.Tensor]:
    return {
        ours: torch.from_numpy(seen["observation"][theirs]["rgb"]).movedim(-1, 0)
        for theirs, ours in CAMERAS.items()
    }


def test_actions_are_those_of_a_session_that_sees_every_frame(policy, port):
    """Two chunks: the first one's history is the first frame, the second one's that of 15 steps before."""
    task, model = ToyTask(), connect(port, gripper_threshold=None)
    robotwin.eval(task, model, task.get_obs())
    assert model.driver.reply["history"] == {"source": "first", "age_steps": 0}
    assert model.driver.reply["actions"].shape == (50, JOINTS)
    robotwin.eval(task, model, task.get_obs())
    assert model.driver.reply["history"] == {"source": "received", "age_steps": PAST}
    assert task.rendered == [0, 15, 30, 45], "rendering costs most of the time"
    assert len(task.taken) == 2 * EXECUTED

    session, again = Session(policy, seeds=[SEED]), ToyTask()
    for action in task.taken:
        seen = again.look(len(again.taken), again.joints)
        state = torch.tensor(seen["joint_action"]["vector"], dtype=torch.float32)
        expected = session.act(pictures(seen), state, INSTRUCTION).numpy()
        np.testing.assert_allclose(action, expected, atol=1e-5)
        again.take_action(action)


def test_at_the_start_of_an_episode_the_first_frame_comes_twice(policy, port):
    task, model = ToyTask(), connect(port, gripper_threshold=None)
    seen = task.get_obs()
    action = model.act(seen, INSTRUCTION)
    both = {key: torch.stack((frame, frame))[None] for key, frame in pictures(seen).items()}
    state = torch.tensor(seen["joint_action"]["vector"], dtype=torch.float32)[None]
    chunk = policy.predict(both, state, [INSTRUCTION], policy.noise([SEED], 0)).actions[0]
    np.testing.assert_allclose(action, chunk[0], atol=1e-5)
    other = {key: torch.stack((255 - frame, frame))[None] for key, frame in pictures(seen).items()}
    moved = policy.predict(other, state, [INSTRUCTION], policy.noise([SEED], 0)).actions[0]
    assert not np.allclose(moved[0], chunk[0], atol=1e-5), "the history frame matters here"


def test_joints_are_relative_to_the_chunks_start_and_grippers_are_not(policy, port):
    """What the model itself predicts, unnormalized: the state comes on top of joints alone."""
    task, model = ToyTask(), connect(port, gripper_threshold=None)
    seen = task.get_obs()
    model.act(seen, INSTRUCTION)
    physical = model.driver.reply["actions"]
    both = {key: torch.stack((frame, frame))[None] for key, frame in pictures(seen).items()}
    state = torch.tensor(seen["joint_action"]["vector"], dtype=torch.float32)[None]
    observed, steps = policy.observe(both, state, [INSTRUCTION]), policy.spec.sampler.num_steps
    normalized, _ = policy.model.sample(observed, policy.noise([SEED], 0), steps, JOINTS)
    plain = policy.processor.statistics.action.unnormalize(normalized[0]).numpy()
    np.testing.assert_allclose(physical[:, ARMS], plain[:, ARMS] + state[:, ARMS].numpy(), atol=1e-5)
    np.testing.assert_allclose(physical[:, GRIPPERS], plain[:, GRIPPERS], atol=1e-5)


def test_grippers_are_opened_or_closed(port):
    """At a threshold between the predicted values both occur; arms are left alone."""
    plain, sharp = ToyTask(), ToyTask()
    model = connect(port, gripper_threshold=None)
    robotwin.eval(plain, model, plain.get_obs())
    before = np.stack(plain.taken)
    threshold = float(np.median(before[:, GRIPPERS]))
    model = connect(port, gripper_threshold=threshold)
    robotwin.eval(sharp, model, sharp.get_obs())
    after = np.stack(sharp.taken)
    assert set(after[:, GRIPPERS].flatten()) == {0.0, 1.0}
    assert np.array_equal(after[:, GRIPPERS], before[:, GRIPPERS] > threshold)
    assert np.array_equal(after[:, ARMS], before[:, ARMS])
    assert connect(port)._threshold == 0.5


def test_an_episode_ends_when_it_succeeded_and_the_next_begins_anew(port):
    task, model = ToyTask(succeeds_at=7), connect(port)
    robotwin.eval(task, model, task.get_obs())
    assert len(task.taken) == 7
    robotwin.reset_model(model)
    following = ToyTask(episode=1)
    robotwin.eval(following, model, following.get_obs())
    assert model.driver.reply["history"]["source"] == "first"
    assert model.driver.reply["noise"] == {"seed": SEED + 1, "call": 0}
    assert len(following.taken) == EXECUTED


def test_only_an_episode_that_was_stepped_takes_a_seed(port):
    """RoboTwin may call `reset_model` before the first episode, or more than once between two."""
    model, seeds = connect(port), []
    for episode in range(2):
        robotwin.reset_model(model)
        robotwin.reset_model(model)
        task = ToyTask(episode, succeeds_at=1)
        robotwin.eval(task, model, task.get_obs())
        seeds.append(model.driver.reply["noise"]["seed"])
    assert seeds == [SEED, SEED + 1]


def test_what_is_executed_of_a_chunk_is_a_setting(port):
    task, model = ToyTask(), connect(port, execute=10)
    for _ in range(3):
        robotwin.eval(task, model, task.get_obs())
    assert (len(task.taken), task.rendered) == (30, [0, 5, 10, 15, 20, 25])
    assert model.driver.reply["history"] == {"source": "received", "age_steps": PAST}
    with pytest.raises(ValueError, match=r"execute must lie in 1 … 50, a chunk's steps; got 51"):
        connect(port, execute=51)


@pytest.mark.slow
@pytest.mark.multiprocess
def test_with_the_command_that_serves(policy, tmp_path):
    """A checkpoint behind `vla-mot serve`, which says where it listens: the same actions as from memory."""
    policy.save_pretrained(tmp_path / "p")
    words = ["serve", f"checkpoint={tmp_path / 'p'}", "robot=aloha", "port=0"]
    command = [sys.executable, "-m", "vla_mot.commands.main", *words]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        try:
            said = [process.stdout.readline(), process.stdout.readline()]
            model = connect(int(re.search(r"serving on ws://127\.0\.0\.1:(\d+)", said[1])[1]))
            task = ToyTask()
            robotwin.eval(task, model, task.get_obs())
            process.send_signal(signal.SIGTERM)
            assert process.wait(30) == 0
        finally:
            process.kill()
    with serving({"aloha": policy}) as running:
        again = ToyTask()
        robotwin.eval(again, connect(running.port), again.get_obs())
    np.testing.assert_allclose(np.stack(task.taken), np.stack(again.taken), atol=1e-6)
