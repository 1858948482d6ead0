"""Real-time chunking: what is committed is kept, in the frame of the new state; nothing else is touched."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tests.infer.test_session import Watched
from tests.infer.tiny_policy import frames, states, tiny_policy
from vla_mot.batch import ActionChunk
from vla_mot.errors import ConfigError
from vla_mot.flow.solvers import integrate
from vla_mot.infer.chunking import Chunking
from vla_mot.infer.inference import SimulatedInference
from vla_mot.infer.policy import Policy
from vla_mot.infer.rtc import RtcConfig, continue_chunk, freeze, prefix_weights, pull
from vla_mot.infer.session import Session

TASK = ["pick the red block"]
L, A, D = 8, 5, 3  # steps of a chunk, padded and real action dims
GUIDED = [
    RtcConfig(),
    RtcConfig(jacobian="identity"),
    RtcConfig(schedule="ones"),
    RtcConfig(max_guidance=1.0),
]
FROZEN = RtcConfig(mode="frozen")


def bowed(x: Tensor, level: Tensor) -> Tensor:
    """A velocity whose steps and dimensions depend on each other."""
    return torch.tanh(x.cumsum(1) + x.flip(2)) * (1 + level[:, None, None])


def normal(seed: int, *shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(scope="module", params=["delta", "abs"])
def acting(request) -> Policy:
    return tiny_policy(chunk_size=L, n_action_steps=4, action_mode=request.param)


def chunk_from(
    policy: Policy, config: RtcConfig | None, left_over: Tensor, delay: int, state: Tensor
) -> Tensor:
    """Physical actions `(B, L, D)` from fixed frames and noise."""
    noise = policy.noise([1, 2], 0)
    guide = None
    if config is not None:
        guide = continue_chunk(config, left_over, delay, state, noise, policy.processor)
    images = {key: torch.stack((image, image), 1) for key, image in frames(2).items()}
    return policy.predict(images, state, TASK * 2, noise, guide).actions


# ---- the mask ----------------------------------------------------------------------------------------------------


def test_the_mask_is_the_one_that_is_drawn():
    c = torch.tensor([3 / 4, 2 / 4, 1 / 4])  # (end - i) / (end - delay + 1), for end 5 and delay 2
    between = {
        "exp": c * (c.exp() - 1) / (torch.e - 1),
        "linear": c,
        "ones": torch.ones(3),
        "zeros": torch.zeros(3),
    }
    for schedule, expected in between.items():
        whole = torch.cat((torch.ones(2), expected, torch.zeros(3)))
        torch.testing.assert_close(prefix_weights(schedule, 2, 5, 8), whole)


@given(st.sampled_from(["exp", "linear", "ones", "zeros"]), st.integers(0, 12), st.integers(0, 10))
def test_the_mask_falls_from_one_to_zero(schedule, delay, end):
    weights = prefix_weights(schedule, delay, end, 10)
    assert (weights[: min(delay, end)] == 1).all() and (weights[end:] == 0).all()
    assert (weights.diff() <= 0).all()


# ---- the flow ----------------------------------------------------------------------------------------------------


@settings(deadline=None, max_examples=40)
@given(st.sampled_from(["euler", "midpoint", "heun"]), st.integers(2, 12), st.integers(0, 9))
def test_frozen_places_end_where_they_should_and_the_others_are_denoised_beside_them(solver, steps, seed):
    noise, target = normal(seed, 2, L, A), normal(seed + 100, 2, L, A)
    committed = torch.zeros(L, A, dtype=torch.bool)
    committed[:3, :D] = True
    end = integrate(freeze(target, noise, committed)(bowed), noise, steps, solver)
    torch.testing.assert_close(end[:, :3, :D], target[:, :3, :D], atol=2e-6, rtol=0)
    free = integrate(bowed, noise, steps, solver)
    assert not torch.allclose(end[:, 3:], free[:, 3:], atol=1e-3), "what is frozen should be seen by the rest"


@settings(deadline=None, max_examples=40)
@given(st.booleans(), st.integers(4, 12), st.integers(0, 9))
def test_guidance_brings_the_prefix_closer(exact, steps, seed):
    noise, target = normal(seed, 2, L, A), normal(seed + 100, 2, L, A)
    velocity = lambda x, level: (noise - torch.tanh(x)).detach() + 0.1 * x  # noqa: E731
    weights = prefix_weights("exp", 3, 6, L)[:, None]
    free = integrate(velocity, noise, steps)
    bent = integrate(pull(target, weights, 5.0, exact=exact)(velocity), noise, steps)
    apart, before = ((end - target)[:, :3].norm() for end in (bent, free))
    assert apart < 0.5 * before
    assert not bent.requires_grad


def test_the_pull_goes_back_through_the_denoiser():
    """For v = M·x the guess is (1 − s·M)·x, whose transposed Jacobian is known."""
    matrix = normal(0, A, A)
    x, target, weights = normal(1, 1, L, A), normal(2, 1, L, A), torch.rand(L, 1)
    s = torch.tensor([0.4])
    velocity = lambda x, level: x @ matrix  # noqa: E731
    jacobian = torch.eye(A) - 0.4 * matrix
    error = weights * (target - x @ jacobian)
    strength = min(5.0, (0.6**2 + 0.4**2) / (0.4 * 0.6))
    expected = x @ matrix - strength * error @ jacobian.T
    torch.testing.assert_close(pull(target, weights, 5.0)(velocity)(x, s), expected)
    plain = x @ matrix - strength * error
    torch.testing.assert_close(pull(target, weights, 5.0, exact=False)(velocity)(x, s), plain)


@pytest.mark.parametrize("level", [1.0, 0.0])
def test_the_pull_is_bounded_where_its_formula_is_not(level):
    x, target = normal(1, 1, L, A), normal(2, 1, L, A)
    bent = pull(target, torch.ones(L, 1), 3.0, exact=False)(bowed)(x, torch.tensor([level]))
    plain = bowed(x, torch.tensor([level]))
    torch.testing.assert_close(bent, plain - 3.0 * (target - (x - level * plain)))


# ---- the policy --------------------------------------------------------------------------------------------------


def test_without_anything_left_over_nothing_is_guided(acting):
    state = states(2)
    free = chunk_from(acting, None, torch.zeros(2, 0, D), 0, state)
    for config in (*GUIDED, FROZEN):
        assert torch.equal(chunk_from(acting, config, torch.zeros(2, 0, D), 3, state), free)


def test_a_frozen_prefix_is_kept_in_physical_units_though_the_state_moved(acting):
    """In delta mode, a target that were relative to the old state would miss by the distance moved."""
    before = states(2)
    left_over = chunk_from(acting, None, torch.zeros(2, 0, D), 0, before)[:, 3:]
    moved = before + torch.tensor([0.07, -0.05, 0.02, 0.0])
    chunk = chunk_from(acting, FROZEN, left_over, 3, moved)
    torch.testing.assert_close(chunk[:, :3], left_over[:, :3], atol=1e-5, rtol=0)
    free = chunk_from(acting, None, left_over, 3, moved)
    assert (free[:, :3] - left_over[:, :3]).abs().max() > 0.01, "the test would pass unguided"


@pytest.mark.parametrize("config", GUIDED)
def test_a_guided_prefix_is_closer_in_physical_units_though_the_state_moved(acting, config):
    before = states(2)
    left_over = chunk_from(acting, None, torch.zeros(2, 0, D), 0, before)[:, 3:]
    moved = before + torch.tensor([0.07, -0.05, 0.02, 0.0])
    bent, free = (chunk_from(acting, c, left_over, 3, moved)[:, :3] for c in (config, None))
    scale = acting.robot.statistics.action.std
    apart, before_it = (((chunk - left_over[:, :3]) / scale).norm() for chunk in (bent, free))
    assert apart < 0.6 * before_it


def test_padded_dimensions_and_missing_steps_are_left_alone(acting):
    """Fails when the zeros that fill up the target are taken for a wish."""
    policy, noise = acting, acting.noise([1], 0)
    left_over = chunk_from(policy, None, torch.zeros(2, 0, D), 0, states(2))[:1, 5:]
    for config in (*GUIDED, FROZEN):
        guide = continue_chunk(config, left_over, 9, states(1), noise, policy.processor)
        assert guide is not None
        still = torch.zeros_like(noise)
        bent = guide(lambda x, level: torch.zeros_like(x) + 0.0 * x)(still, torch.tensor([0.5]))
        assert bent[:, : L - 5, :D].ne(0).all()
        assert bent[:, L - 5 :].eq(0).all() and bent[..., D:].eq(0).all()


def test_the_flow_of_the_whole_model_can_be_gone_back_through(acting):
    """The exact Jacobian differs from the identity's answer: the denoiser was asked how it depends on x."""
    left_over = chunk_from(acting, None, torch.zeros(2, 0, D), 0, states(2))[:, 2:]
    exact, identity = (chunk_from(acting, config, left_over, 2, states(2, 5)) for config in GUIDED[:2])
    assert (exact - identity).abs().max() > 1e-4


def test_gradients_are_needed_and_their_absence_is_said(acting):
    with torch.inference_mode(), pytest.raises(ConfigError, match=r"torch.no_grad\(\) instead of"):
        chunk_from(acting, RtcConfig(), torch.zeros(2, 3, D), 2, states(2))
    with torch.inference_mode():
        for config in (FROZEN, GUIDED[1]):
            chunk_from(acting, config, torch.zeros(2, 3, D), 2, states(2))


class Answering(Watched):
    """Also remembers what it answered."""

    def predict(self, *asked, **options) -> ActionChunk:
        chunk = super().predict(*asked, **options)
        self.answered = [*getattr(self, "answered", []), chunk.actions]
        return chunk


def disagreement(chunks: Chunking, delay: int) -> float:
    """How far a chunk's first `delay` actions are from those that the robot executes meanwhile; one every 4 steps."""
    policy = Answering(tiny_policy(chunk_size=L, n_action_steps=4))
    session = Session(policy, [3], chunks=chunks, inference=SimulatedInference(policy, delay))
    for t in range(14):
        session.act(frames(1, t), states(1, t), TASK)
    first, second, third, _ = policy.answered
    return max(
        (a[:, 4 : 4 + delay] - b[:, :delay]).abs().max().item() for a, b in ((first, second), (second, third))
    )


def test_the_chunks_of_a_session_agree_on_what_is_executed_meanwhile():
    naive = disagreement(Chunking(), 2)
    assert disagreement(Chunking("rtc", rtc=FROZEN), 2) < 1e-5 < 0.01 < naive
    assert disagreement(Chunking("rtc", rtc=RtcConfig(max_guidance=10.0)), 2) < 0.6 * naive


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"mode": "frosen"}, "Did you mean 'frozen'"),
        ({"schedule": "quadratic"}, "Known: exp, linear, ones, zeros"),
        ({"jacobian": "none"}, "rtc.jacobian"),
        ({"max_guidance": 0.0}, "positive, finite number, got 0"),
        ({"max_guidance": float("nan")}, "positive, finite number"),
        ({"overlap": 0}, "rtc.overlap must be at least 1"),
    ],
)
def test_what_cannot_be_is_refused(wrong, message):
    with pytest.raises(ConfigError, match=message):
        RtcConfig(**wrong)


@pytest.mark.parametrize("steps", range(1, 21))
def test_no_solver_is_thrown_off_where_rounding_leads_below_zero(steps):
    """Heun asks at s = 0, up to rounding, where the pull would be infinite."""
    target, weights = torch.ones(1, 4, 2), torch.ones(4, 1)
    guide = pull(target, weights, max_guidance=5.0, exact=False)
    for solver in ("euler", "midpoint", "heun"):
        found = integrate(guide(lambda x, s: x - 1), torch.zeros(1, 4, 2), steps, solver)
        assert found.abs().max() < 50, solver


@pytest.mark.parametrize("config", [FROZEN, RtcConfig(), RtcConfig(jacobian="identity")])
def test_an_engine_continues_chunks_as_the_model_does(monkeypatch, acting, config):
    """By its own denoising step, unless the guide goes back through it."""
    left_over, state = chunk_from(acting, None, normal(0, 2, L, D), 0, states(2)), states(2, 4)
    expected = chunk_from(acting, config, left_over[:, 4:], 2, state)
    if config.mode == "frozen" or config.jacobian == "identity":
        monkeypatch.setattr(acting.model, "denoise", None)
    engine = acting.compile("static")
    assert torch.allclose(chunk_from(engine, config, left_over[:, 4:], 2, state), expected, atol=2e-5)
