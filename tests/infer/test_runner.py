"""The loop that never waits: a gate in front of the policy decides when inference ends, and a clock that tests drive
how long it took."""

import itertools
import threading
import time
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from tests.infer.tiny_policy import frames, known_robot, states, tiny_policy
from vla_mot.batch import ActionChunk
from vla_mot.errors import ConfigError
from vla_mot.hub.spec import PolicySpec, SamplerConfig
from vla_mot.infer.background import BackgroundInference
from vla_mot.infer.chunking import Chunking
from vla_mot.infer.inference import InferenceError, LateInferenceError, SimulatedInference
from vla_mot.infer.policy import Policy
from vla_mot.infer.runner import Runner
from vla_mot.infer.session import Session
from vla_mot.robots.robot import Robot

TASK = "pick the red block"
LONG = 20.0  # seconds that no test waits for, unless it hangs


class Gated(Policy):
    """A policy whose predictions end only when they are let through."""

    def __init__(self, policy: Policy) -> None:
        super().__init__(policy.model, policy.spec)
        self.gate = threading.Semaphore(0)
        self.threads: set[str] = set()

    def predict(self, *asked, **options) -> ActionChunk:
        assert self.gate.acquire(timeout=LONG)
        self.threads.add(threading.current_thread().name)
        return super().predict(*asked, **options)


@pytest.fixture
def gated() -> Gated:
    """Chunks of 8, a new one every 4 steps."""
    return Gated(tiny_policy(chunk_size=8, n_action_steps=4))


def let_through(runner: Runner) -> None:
    """The prediction under way ends now."""
    runner.policy.gate.release()
    runner.inference.wait(LONG)


def step(runner: Runner | Session, t: int) -> Tensor:
    act = runner.step if isinstance(runner, Runner) else runner.act
    return act({key: image[0] for key, image in frames(1, t).items()}, states(1, t)[0], TASK)


def drive(runner: Runner, steps: int, delay: int) -> list[Tensor]:
    """Every prediction takes `delay` steps; the one that is under way at the end may end when it likes.

    The caller's memory, and the actions that it got, are spoilt after every step: nobody may read them later.
    """
    actions, asked = [], 0
    for t in range(steps):
        if runner.inference.busy and t >= asked + delay:
            let_through(runner)
        before = runner.report().asked
        images, state = {key: image[0] for key, image in frames(1, t).items()}, states(1, t)[0]
        action = runner.step(images, state, TASK)
        actions.append(action.clone())
        for spoilt in (*images.values(), state, action):
            spoilt.mul_(57)
        asked = t if runner.report().asked > before else asked
    if runner.inference.busy:
        let_through(runner)
    return actions


@pytest.mark.parametrize("method", ["naive", "ensemble", "rtc"])
@pytest.mark.parametrize("delay", [1, 3])
def test_the_loop_does_what_simulated_latency_predicts(gated, method, delay):
    """So that what an evaluation finds holds for the robot."""
    chunks = Chunking(method)
    with Runner(gated, [5], chunks=chunks, first_delay=delay, remember_latents=delay > 1) as runner:
        ours = drive(runner, 14, delay)
        assert gated.threads == {"vla-mot-inference_0"}
    plain = tiny_policy(chunk_size=8, n_action_steps=4)
    session = Session(plain, [5], chunks=chunks, inference=SimulatedInference(plain, delay))
    for t, action in enumerate(ours):
        torch.testing.assert_close(action, step(session, t), msg=f"step {t}")


def test_a_step_returns_while_inference_goes_on(gated):
    with Runner(gated, max_late=50) as runner:
        began = time.perf_counter()
        actions = [step(runner, t) for t in range(20)]
        assert time.perf_counter() - began < LONG / 4
        assert all(torch.equal(action, states(1, t)[0, :3]) for t, action in enumerate(actions))
        report = runner.report()
        assert (report.asked, report.used, report.waiting, report.starved) == (1, 0, 20, 0)
        gated.gate.release()


def test_late_inference_is_bounded_and_said(gated, caplog):
    seconds = itertools.count(step=0.1)
    with Runner(gated, max_late=3, clock=lambda: next(seconds)) as runner:
        step(runner, 0)
        let_through(runner)
        actions = [step(runner, t) for t in range(1, 8)]  # asked again at step 4, and not answered
        assert not caplog.records
        held = []
        for t in range(8, 11):
            action = step(runner, t)
            held.append(action.clone())
            action.mul_(57)  # it is the caller's own
        assert [record.getMessage() for record in caplog.records if "0 stale" in record.getMessage()]
        assert len(caplog.records) == 1, "said once"
        assert all(torch.equal(action, actions[-1]) for action in held)
        with pytest.raises(LateInferenceError, match=r"4 control steps in a row; at most 3 were allowed"):
            step(runner, 11)
        assert runner.report().longest_starvation == 4
        gated.gate.release()


def test_a_chunk_that_comes_too_late_is_dropped_and_the_next_delay_is_foreseen(gated):
    with Runner(gated, max_late=30) as runner:
        for t in range(9):
            step(runner, t)
        let_through(runner)
        still = step(runner, 9)  # nine steps late: all eight actions are past
        assert torch.equal(still, states(1, 9)[0, :3])
        report = runner.report()
        assert (report.stale, report.used, report.asked) == (1, 0, 2)
        assert runner.inference.expected_delay == 9
        gated.gate.release()


def test_the_largest_recent_delay_is_expected(gated):
    with Runner(gated, first_delay=0) as runner:
        assert runner.inference.expected_delay == 0
        drive(runner, 10, delay=2)
        assert runner.inference.expected_delay == 2


def test_errors_of_the_worker_come_up_in_the_loop_with_their_cause(gated):
    with Runner(gated) as runner:
        runner.step({key: image[0] for key, image in frames(1).items() if "head" in key}, states(1)[0], TASK)
        let_through(runner)
        with pytest.raises(InferenceError, match="expects cameras") as raised:
            runner.step(
                {key: image[0] for key, image in frames(1).items() if "head" in key}, states(1)[0], TASK
            )
        assert isinstance(raised.value.__cause__, ConfigError)


def test_latency_is_measured_by_the_clock_and_slow_steps_are_counted(gated):
    now = [100.0]

    class Slow(Gated):
        def predict(self, *asked, **options) -> ActionChunk:
            now[0] += 0.07
            return super().predict(*asked, **options)

    slow = Slow(gated)
    with Runner(slow, clock=lambda: now[0]) as runner:
        step(runner, 0)
        let_through(runner)
        now[0] = 100.1
        step(runner, 1)
        now[0] = 100.3  # two periods of 0.1 s later
        step(runner, 2)
        report = runner.report()
        assert report.latency_ms.p50 == report.latency_ms.largest == pytest.approx(70)
        assert report.slow_steps == 1
        assert report.to_dict()["delay_steps"]["p99"] == 1


def test_a_loop_that_does_not_keep_the_rate_is_told_once_an_episode(gated, caplog):
    now = [0.0]

    def go(runner: Runner, periods: float, steps: int) -> None:
        for _ in range(steps):
            now[0] += periods / 10
            step(runner, 0)

    with Runner(gated, max_late=99, clock=lambda: now[0]) as runner:
        go(runner, 1, 3)
        go(runner, 0.1, 9)
        go(runner, 0.6, 9)
        assert not caplog.records, "a stumble that is made good"
        go(runner, 0.1, 10)
        assert "does not keep the control rate: 10 steps in a row" in caplog.text
        go(runner, 0.1, 20)
        assert caplog.text.count("does not keep") == 1
        assert (runner.report().fast_steps, runner.report().slow_steps) == (39, 0)
        runner.reset()
        go(runner, 0.1, 11)
        assert caplog.text.count("does not keep") == 2 and runner.report().fast_steps == 10
        gated.gate.release(2)


def test_a_robot_without_a_rate_is_not_told_of_any(gated, caplog):
    body = replace(gated.robot.embodiment, fps=None)
    spec = replace(gated.spec, robots=(Robot(body, gated.robot.statistics),))
    with Runner(Policy(gated.model, spec), max_late=99) as runner:
        for _ in range(12):
            step(runner, 0)
    assert not caplog.records and runner.report().fast_steps == 0


@pytest.mark.parametrize("action_mode", ["delta", "abs"])
def test_a_state_that_is_not_finite_moves_nothing(action_mode):
    images = {key: image[0] for key, image in frames(1).items()}
    nowhere = torch.full((4,), torch.nan)
    with Runner(tiny_policy(action_mode=action_mode)) as runner:
        with pytest.raises(ConfigError, match=r"held still at .*nan.*not finite"):
            runner.step(images, nowhere, TASK)
        runner.inference.wait(LONG)
        with pytest.raises(InferenceError, match=r"the state must be finite, got .*nan"):
            runner.step(images, states(1)[0], TASK)
        with pytest.raises(InferenceError, match="the state must be finite"):
            runner.warm_up(images, nowhere, TASK)


def test_another_episode_drops_what_was_under_way(gated):
    with Runner(gated, [1]) as runner:
        step(runner, 0)
        let_through(runner)
        first = step(runner, 1)
        for t in range(2, 5):
            step(runner, t)  # asked again, and under way
        runner.reset([2])
        gated.gate.release(2)
        step(runner, 0)
        runner.inference.wait(LONG)
        other = step(runner, 1)
        assert runner.report().used == 1
        runner.reset([1])
        gated.gate.release()
        step(runner, 0)
        runner.inference.wait(LONG)
        assert torch.equal(step(runner, 1), first) and not torch.equal(other, first)


def test_warming_up_changes_no_action(gated):
    with Runner(gated, [1], chunks=Chunking("rtc")) as runner:
        gated.gate.release(2)  # without and with guidance
        runner.warm_up({key: image[0] for key, image in frames(1).items()}, states(1)[0], TASK)
        assert runner.report().steps == 0
        warmed = drive(runner, 8, delay=1)
    other = Gated(gated)
    with Runner(other, [1], chunks=Chunking("rtc")) as runner:
        cold = drive(runner, 8, delay=1)
    assert all(torch.equal(a, b) for a, b in zip(warmed, cold, strict=True))


def test_it_stops_cleanly_and_says_so(gated, caplog):
    runner = Runner(gated)
    runner.step({key: image[0] for key, image in frames(1).items() if "head" in key}, states(1)[0], TASK)
    gated.gate.release()
    runner.close()
    runner.close()
    assert "the last prediction failed" in caplog.text
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("vla-mot-inference")]
    with pytest.raises(RuntimeError, match="closed"):
        step(runner, 1)


def test_a_robot_of_which_nobody_knows_how_it_holds_still_is_refused():
    policy = tiny_policy()
    body = known_robot("conveyor", 4)
    renamed = body.embodiment.to_dict()
    renamed["action"][0]["names"][2] = "width"
    embodiment = type(body.embodiment).from_dict(renamed)
    robot = type(body)(embodiment, body.statistics)
    odd = Policy(policy.model, PolicySpec(policy.spec.model, (robot,), SamplerConfig(3, 3)))
    with pytest.raises(ConfigError, match=r"action width still is not known.*give hold="):
        Runner(odd)
    with Runner(odd, hold=lambda state: state[:, :3] + 1) as runner:
        assert torch.equal(step(runner, 0), states(1)[0, :3] + 1)


class Looking(Policy):
    """A policy that notes where it looks ahead."""

    threads: tuple[str, ...] = ()

    def look(self, *seen) -> None:
        super().look(*seen)
        self.threads += (threading.current_thread().name,)


def test_understanding_is_renewed_beside_the_loop_after_an_answer():
    plain = tiny_policy(n_action_steps=1).compile("static", understanding_ahead=True)
    policy = Looking(plain.model, plain.spec, engine=plain.engine)
    with Runner(policy, [5]) as runner:
        for t in range(6):
            step(runner, t)
            runner.inference.wait(LONG)
    assert len(policy.threads) >= 3 and set(policy.threads) == {"vla-mot-inference_0"}
    assert runner.report().oldest_understanding == 1


def test_preparations_do_not_pile_up_behind_a_slow_prediction(gated):
    done = []
    inference = BackgroundInference(gated)
    session = Session(gated, [5])
    session.remember(frames(1))
    inference.ask(session.question(states(1), [TASK]), 0)
    for number in range(5):
        inference.prepare(lambda policy, number=number: done.append(number))
    gated.gate.release()
    inference.wait(LONG)
    inference.close()
    assert done == [0, 1]


@pytest.mark.parametrize("rows", [[1, 0], [1]])
def test_robots_that_are_kept_while_a_question_waits_are_answered_by_their_own_latents(rows):
    said = []
    for remembers in (False, True):
        policy, go_on = tiny_policy(), threading.Event()
        inference = BackgroundInference(policy)
        session = Session(policy, [5, 6], inference=inference, remember_latents=remembers)
        for t in range(4):
            if t == 3:
                inference.prepare(lambda policy, go_on=go_on: go_on.wait(LONG))  # and the question behind it
            session.act(frames(2, t), states(2, t), TASK)
            if t < 3:
                inference.wait(LONG)
        assert inference.busy
        session.keep(rows)
        go_on.set()
        inference.wait(LONG)
        pictures = {key: image[rows] for key, image in frames(2, 4).items()}
        said.append(session.act(pictures, states(2, 4)[rows], TASK))
        assert session.timing.report().used == 2
        inference.close()
    torch.testing.assert_close(said[1], said[0], atol=1e-5, rtol=0)


def test_what_cannot_be_prepared_is_said_once(caplog):
    inference = BackgroundInference(tiny_policy())
    for _ in range(3):
        inference.prepare(lambda policy: 1 / 0)
    inference.close()
    assert caplog.text.count("what was to be prepared beside the control loop failed") == 1
