"""Inference behind LeRobot's interface: the same actions as `vla_mot.Policy` with a `Session`."""

import pytest
import torch

from tests.policy.conftest import CHUNK, GRIPPER, HEAD, OFFSET
from vla_mot.errors import ConfigError
from vla_mot.infer.policy import Policy
from vla_mot.infer.session import Session
from vla_mot.policy import VlaMotPolicy

TASKS = ["pick the red block", "pick the blue block"]


def observation(step: int, robots: int = 2, side: int = 40) -> dict:
    """As `lerobot-eval` gives it: float pictures that were uint8. The side differs from the model's 32 pixels."""
    generator = torch.Generator().manual_seed(step)
    frames = torch.randint(0, 256, (2, 2, 3, side, side), generator=generator, dtype=torch.uint8)
    return {
        HEAD: frames[0, :robots].float() / 255,
        GRIPPER: frames[1, :robots].float() / 255,
        "observation.state": torch.rand(2, 4, generator=generator)[:robots],
        "task": TASKS[:robots],
    }


@pytest.fixture
def policy(native) -> VlaMotPolicy:
    return VlaMotPolicy.from_pretrained(native)


def test_actions_equal_those_of_a_session_bit_by_bit(native, policy):
    session = Session(Policy.from_pretrained(native), seeds=[0, 1])
    for step in range(8):  # across two predictions, beyond the history's offset
        seen = observation(step)
        images = {key: (seen[key] * 255).round().to(torch.uint8) for key in (HEAD, GRIPPER)}
        expected = session.act(images, seen["observation.state"], seen["task"])
        assert torch.equal(policy.select_action(seen), expected)
    assert torch.equal(policy.foresight, session.foresight)


def test_an_episode_does_not_depend_on_its_neighbours(policy, native):
    both = [policy.select_action(observation(step)) for step in range(5)]
    alone = VlaMotPolicy.from_pretrained(native)
    for step, actions in enumerate(both):
        torch.testing.assert_close(alone.select_action(observation(step, robots=1)), actions[:1])


def test_reset_forgets_and_takes_the_next_seeds(policy, native):
    first = policy.select_action(observation(0))
    policy.select_action(observation(1))
    policy.reset()
    policy.reset()  # twice is once
    again = policy.select_action(observation(0))
    assert not torch.equal(again, first)
    fresh = Session(Policy.from_pretrained(native), seeds=[2, 3])
    seen = observation(0)
    images = {key: (seen[key] * 255).round().to(torch.uint8) for key in (HEAD, GRIPPER)}
    assert torch.equal(again, fresh.act(images, seen["observation.state"], seen["task"]))


@pytest.mark.parametrize("side", [32, 40])
def test_floats_that_never_were_bytes_are_not_rounded(policy, native, side):
    """An environment may draw them, in the model's size or another one."""
    seen = observation(0) | {key: torch.rand(2, 3, side, side) for key in (HEAD, GRIPPER)}
    plain, noise = Session(Policy.from_pretrained(native), seeds=[0, 1]), torch.zeros(2, CHUNK, 5)
    plain.remember({key: seen[key] for key in (HEAD, GRIPPER)})
    expected = plain.predict(seen["observation.state"], seen["task"], noise)
    assert torch.equal(policy.predict_action_chunk(seen, noise=noise), expected.actions)


def test_a_chunk_starts_with_the_selected_actions(policy, native):
    chunk = policy.predict_action_chunk(observation(0))
    assert chunk.shape == (2, CHUNK, 3)
    other = VlaMotPolicy.from_pretrained(native)
    assert torch.equal(other.select_action(observation(0)), chunk[:, 0])
    assert torch.equal(other.select_action(observation(1)), chunk[:, 1])


def test_chunks_remember_the_frames_of_earlier_calls(policy, native):
    noise = torch.zeros(2, CHUNK, 5)
    chunks = [policy.predict_action_chunk(observation(step), noise=noise) for step in (0, 1)]
    without_history = VlaMotPolicy.from_pretrained(native)
    assert torch.equal(without_history.predict_action_chunk(observation(0), noise=noise), chunks[0])
    without_history.reset()
    assert not torch.equal(without_history.predict_action_chunk(observation(1), noise=noise), chunks[1])


def test_a_sampler_from_the_command_line_is_used(native):
    from lerobot.configs import PreTrainedConfig

    config = PreTrainedConfig.from_pretrained(native, cli_overrides=["--n_action_steps=1", "--num_steps=1"])
    policy = VlaMotPolicy.from_pretrained(native, config=config)
    assert policy.spec.sampler.num_steps == 1
    policy.select_action(observation(0))
    first = policy.foresight
    policy.select_action(observation(1))
    assert not torch.equal(policy.foresight, first)  # predicted anew at every step


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({HEAD: None}, f"expects {HEAD}"),
        ({"observation.state": None}, "expects observation.state"),
        ({"task": None}, "no 'task'"),
        ({"task": ["a", "b", "c"]}, "2 samples and 3 instructions"),
        ({"observation.state": torch.zeros(2, 5)}, "state has 5 dimensions"),
    ],
)
def test_what_is_missing_is_named(policy, change, message):
    seen = {key: value for key, value in (observation(0) | change).items() if value is not None}
    with pytest.raises(ConfigError, match=message):
        policy.select_action(seen)


def test_another_number_of_robots_needs_a_reset(policy):
    policy.select_action(observation(0))
    with pytest.raises(ConfigError, match="began with 2 robots, this batch has 1"):
        policy.select_action(observation(1, robots=1))


def test_a_caller_may_remember_by_itself(policy, native):
    """The chunk is that of a policy which was called at every step, the frame of m steps ago being given."""
    noise = torch.zeros(2, CHUNK, 5)
    for step in range(OFFSET + 2):
        chunk = policy.predict_action_chunk(observation(step), noise=noise)
    alone = VlaMotPolicy.from_pretrained(native)
    alone.predict_action_chunk(observation(7), noise=noise)  # leaves nothing behind
    given = alone.predict_action_chunk(observation(OFFSET + 1), noise=noise, past=observation(1))
    assert torch.equal(given, chunk)
    assert not torch.equal(
        alone.predict_action_chunk(observation(4), noise=noise, past=observation(0)), chunk
    )
