"""Real-time chunking behind LeRobot's interface."""

import time
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from lerobot.configs import PreTrainedConfig, RTCAttentionSchedule
from lerobot.policies.common.flow_matching import euler_integrate
from lerobot.policies.rtc import ActionQueue, RTCConfig, RTCProcessor
from lerobot.rollout.inference.rtc import RTCInferenceEngine, supports_rtc_inference

from tests.policy.conftest import CHUNK, GRIPPER, HEAD
from tests.policy.test_acting import observation
from vla_mot.errors import ConfigError
from vla_mot.flow.solvers import integrate
from vla_mot.infer.policy import Policy
from vla_mot.infer.rtc import prefix_weights, pull
from vla_mot.infer.session import Session
from vla_mot.policy import VlaMotPolicy, make_vla_mot_pre_post_processors

L, A = 8, 5


def normal(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def with_rtc(native, **options) -> VlaMotPolicy:
    """As `lerobot-rollout --inference.type=rtc` does it."""
    policy = VlaMotPolicy.from_pretrained(native)
    mode = options.pop("rtc_mode", "guided")
    policy.config.rtc_config, policy.config.rtc_mode = RTCConfig(**options), mode
    policy.init_rtc_processor()
    return policy


def test_lerobots_rollout_finds_the_interface(native):
    assert supports_rtc_inference(VlaMotPolicy.from_pretrained(native))


def test_lerobots_own_engine_runs_on_it(native):
    """Its thread, its queue, its processors: as `lerobot-rollout` wires them, without a robot's cables."""
    policy = with_rtc(native, execution_horizon=2)
    names = {"observation.state": ["x", "y", "w", "held"], HEAD: ["height", "width", "channels"]}
    features = {
        "observation.state": {"dtype": "float32", "shape": (4,), "names": names["observation.state"]},
        HEAD: {"dtype": "video", "shape": (32, 32, 3), "names": names[HEAD]},
        GRIPPER: {"dtype": "video", "shape": (32, 32, 3), "names": names[HEAD]},
    }
    before, after = make_vla_mot_pre_post_processors(policy.config)
    engine = RTCInferenceEngine(
        policy, before, after, SimpleNamespace(robot_type="conveyor", action_features={}), policy.config.rtc_config,
        features, "pick the red block", fps=10.0, device="cpu", rtc_queue_threshold=2,
    )  # fmt: skip
    picture = np.zeros((32, 32, 3), np.uint8)
    engine.start()
    engine.notify_observation(
        {"head": picture, "gripper": picture} | dict.fromkeys(names["observation.state"], 0.1)
    )
    engine.resume()
    try:
        actions, deadline = [], time.monotonic() + 60
        while len(actions) < 3 * CHUNK and not engine.failed and time.monotonic() < deadline:
            if (action := engine.get_action(None)) is not None:
                actions.append(action)
            time.sleep(0.01)
    finally:
        engine.stop()
    assert not engine.failed and len(actions) == 3 * CHUNK
    assert all(action.shape == (3,) and action.isfinite().all() for action in actions)


def test_what_is_left_over_is_kept_though_the_state_moved(native):
    """The conveyor's robot acts in deltas: in the old state's frame, the left-over would miss by the distance moved."""
    noise, before = torch.zeros(1, CHUNK, 5), observation(0, robots=1)
    plain = VlaMotPolicy.from_pretrained(native)
    queue = ActionQueue(RTCConfig())
    chunk = plain.predict_action_chunk(before, noise=noise)[0]
    queue.merge(chunk, chunk, real_delay=0)
    queue.get()
    left_over = queue.get_left_over()
    assert left_over.shape == (CHUNK - 1, 3)
    moved = before | {
        "observation.state": before["observation.state"] + torch.tensor([[0.4, -0.3, 0.2, 0.0]])
    }
    frozen = with_rtc(native, rtc_mode="frozen")
    kept = frozen.predict_action_chunk(moved, noise=noise, inference_delay=2, prev_chunk_left_over=left_over)
    torch.testing.assert_close(kept[0, :2], left_over[:2], atol=1e-5, rtol=0)
    guided = with_rtc(native, max_guidance_weight=10.0)
    near = guided.predict_action_chunk(moved, noise=noise, inference_delay=2, prev_chunk_left_over=left_over)
    free = with_rtc(native).predict_action_chunk(moved, noise=noise, inference_delay=2)
    distance = lambda actions: (actions[0, :2] - left_over[:2]).norm()  # noqa: E731
    assert distance(near) < 0.6 * distance(free)


def test_nothing_left_over_or_not_enabled_is_the_plain_chunk(native):
    """Also the zeros by which LeRobot fills up a left-over that is short."""
    noise, seen = torch.zeros(1, CHUNK, 5), observation(0, robots=1)
    plain = VlaMotPolicy.from_pretrained(native).predict_action_chunk(seen, noise=noise)
    for left_over in (None, torch.zeros(0, 3), torch.zeros(10, 3)):
        chunk = with_rtc(native).predict_action_chunk(
            seen, noise=noise, inference_delay=3, prev_chunk_left_over=left_over
        )
        assert torch.equal(chunk, plain)
    off = with_rtc(native, enabled=False)
    assert torch.equal(
        off.predict_action_chunk(seen, noise=noise, inference_delay=3, prev_chunk_left_over=torch.ones(4, 3)),
        plain,
    )


def test_the_zeros_that_fill_up_a_left_over_are_no_wish(native):
    noise, seen = torch.zeros(1, CHUNK, 5), observation(0, robots=1)
    short = torch.full((2, 3), 0.3)
    filled = torch.cat((short, torch.zeros(8, 3)))
    chunks = [
        with_rtc(native).predict_action_chunk(
            seen, noise=noise, inference_delay=1, prev_chunk_left_over=given
        )
        for given in (short, filled, short[None])
    ]
    assert torch.equal(chunks[0], chunks[1]) and torch.equal(chunks[0], chunks[2])


def test_the_horizon_bounds_what_is_attended_to(native):
    noise, seen, given = torch.zeros(1, CHUNK, 5), observation(0, robots=1), torch.full((4, 3), 0.3)

    def chunk(policy, **options):
        return policy.predict_action_chunk(
            seen, noise=noise, inference_delay=0, prev_chunk_left_over=given, **options
        )

    short = chunk(with_rtc(native, execution_horizon=1))
    assert torch.equal(chunk(with_rtc(native), execution_horizon=1), short)
    assert not torch.equal(chunk(with_rtc(native)), short)


def test_history_is_found_by_the_clock_when_calls_are_irregular(native):
    """At 10 Hz and m = 3: of the frames of 0, 0.5 and 0.8 s the middle one is history."""
    now, noise = [0.0], torch.zeros(2, CHUNK, 5)
    policy, plain = with_rtc(native), Session(Policy.from_pretrained(native), seeds=[0, 1])
    policy.clock = lambda: now[0]
    for step, (now[0], steps) in enumerate(((0.0, 1), (0.5, 5), (0.8, 3))):
        seen = observation(step)
        chunk = policy.predict_action_chunk(seen, noise=noise, inference_delay=1)
        plain.remember({key: seen[key] for key in (HEAD, GRIPPER)}, steps)
        expected = plain.predict(seen["observation.state"], seen["task"], noise).actions
        assert torch.equal(chunk, expected)
    by_calls = VlaMotPolicy.from_pretrained(native)
    for step in range(3):
        last = by_calls.predict_action_chunk(observation(step), noise=noise)
    assert not torch.equal(last, expected)
    assert by_calls.clock is time.monotonic


def test_actions_one_by_one_are_refused(native):
    with pytest.raises(ConfigError, match="works through predict_action_chunk"):
        with_rtc(native).select_action(observation(0))


def test_the_configuration_survives_a_checkpoint(native, tmp_path):
    policy = with_rtc(native, max_guidance_weight=7.0, prefix_attention_schedule=RTCAttentionSchedule.EXP)
    policy.save_pretrained(tmp_path / "saved")
    config = PreTrainedConfig.from_pretrained(tmp_path / "saved")
    assert config.rtc_config == policy.config.rtc_config
    again = VlaMotPolicy.from_pretrained(tmp_path / "saved")
    with pytest.raises(ConfigError, match="predict_action_chunk"):
        again.select_action(observation(0))


@pytest.mark.parametrize("shape", [(4, 2), (3, 4, 3), (4,)])
def test_another_shape_is_named(native, shape):
    with pytest.raises(ConfigError, match=r"expected \(1, steps, 3\)"):
        with_rtc(native).predict_action_chunk(
            observation(0, robots=1), inference_delay=0, prev_chunk_left_over=torch.ones(shape)
        )


def test_a_mode_that_nobody_knows_is_named(native):
    with pytest.raises(ConfigError, match="Did you mean 'frozen'"):
        with_rtc(native, rtc_mode="frosen")


@pytest.mark.parametrize("schedule", ["EXP", "LINEAR", "ONES", "ZEROS"])
def test_numbers_are_those_of_lerobots_processor(schedule):
    """LeRobot 0.6.1 records no gradient through the denoiser, so its numbers are those of the identity; and of the
    exact way, where the denoiser does not depend on x."""

    def bowed(x: torch.Tensor, level: torch.Tensor) -> torch.Tensor:
        return torch.tanh(x.cumsum(1) + x.flip(2)) * (1 + level[:, None, None])

    theirs = RTCProcessor(RTCConfig(True, RTCAttentionSchedule[schedule], 10.0, 6))
    noise, left_over = normal(1, 2, L, A), normal(2, 2, 5, A)
    constant = normal(3, 2, L, A)
    target = torch.cat((left_over, torch.zeros(2, L - 5, A)), 1)
    weights = prefix_weights(schedule.lower(), 2, min(6, 5), L)[:, None]
    for velocity, exact in ((bowed, False), (lambda x, level: constant + 0.0 * x, True)):
        expected = euler_integrate(
            velocity, noise, 10, rtc_processor=theirs, rtc_enabled=True, inference_delay=2,
            prev_chunk_left_over=left_over,
        )  # fmt: skip
        ours = integrate(pull(target, weights, 10.0, exact=exact)(velocity), noise, 10)
        torch.testing.assert_close(ours, expected.detach(), atol=2e-5, rtol=1e-4)
