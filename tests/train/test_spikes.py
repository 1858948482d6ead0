import json
import logging
from pathlib import Path

import pytest

from vla_mot.errors import CheckpointError, NonFiniteLossError
from vla_mot.train.spikes import NotFinite, RunningLoss, spike_message

SPIKE = 5.0


def after(losses: list[float], running: RunningLoss | None = None) -> RunningLoss:
    running = running or RunningLoss()
    for loss in losses:
        running = running.after(loss, SPIKE)
    return running


def test_the_mean_of_a_constant_is_the_constant_and_of_a_ramp_follows_it() -> None:
    assert after([2.0] * 50).mean == pytest.approx(2.0)
    falling = [10.0 / (1 + step) for step in range(100)]
    assert after(falling).mean < 5 * falling[-1]  # no spike is seen in what merely falls slower


def test_the_mean_is_its_formula() -> None:
    losses, expected = [3.0, 1.0, 2.0, 5.0], 3.0
    for n, loss in enumerate(losses[1:], start=1):
        decay = min(0.98, (1 + n) / (10 + n))
        expected = decay * expected + (1 - decay) * loss
    assert after(losses).mean == pytest.approx(expected, rel=1e-12)


def test_a_spike_is_seen_only_once_the_mean_has_settled() -> None:
    assert not after([1.0] * 19).is_spike(100.0, SPIKE)
    settled = after([1.0] * 20)
    assert settled.is_spike(5.01, SPIKE)
    assert not settled.is_spike(4.99, SPIKE)


def test_one_spike_does_not_hide_the_next_but_a_level_that_stays_becomes_usual() -> None:
    usual = after([1.0] * 500)
    shocked = after([1e9], usual)
    assert shocked.mean < 1.2
    assert shocked.is_spike(1e9, SPIKE)
    running, seen = usual, 0
    for _ in range(100):
        seen += running.is_spike(20.0, SPIKE)
        running = running.after(20.0, SPIKE)
    assert 0 < seen < 50
    assert not running.is_spike(20.0, SPIKE)


def test_it_continues_from_its_json_as_if_nothing_had_been() -> None:
    losses = [1.0 / 3.0 + 0.1 * (step % 7) for step in range(60)]
    whole = after(losses)
    half = RunningLoss.from_state(json.loads(json.dumps(after(losses[:31]).state())))
    assert after(losses[31:], half) == whole
    assert RunningLoss.from_state({}) == RunningLoss.from_state(None) == RunningLoss()


@pytest.mark.parametrize(
    "state", [{"mean": 1.0}, {"mean": "x", "count": 1}, {"mean": float("nan"), "count": 3}]
)
def test_a_damaged_state_is_refused(state: dict) -> None:
    with pytest.raises(CheckpointError, match="running loss"):
        RunningLoss.from_state(state)


def test_what_is_no_number_never_enters_the_mean() -> None:
    for loss in (float("nan"), float("inf")):
        with pytest.raises(ValueError, match="finite losses only"):
            after([loss])


def test_the_message_of_a_spike_names_the_batch() -> None:
    told = spike_message(7, 12.0, after([2.0]), "frames 3, 4 of dataset 'pick'")
    assert (
        told == "step 7: the loss is 12, its running mean 2. The batch holds frames 3, 4 of dataset 'pick'."
    )


def test_stop_names_the_batch_and_what_to_do() -> None:
    policy = NotFinite("stop", most=10, lr=1e-3)
    expected = (
        r"step 3: loss is not finite\. The batch holds frame 5\. The last good checkpoint is kept/000002\. .*"
    )
    expected += r"init_from=kept/000002 .* train.lr below 0.001\. train.safety.not_finite=skip"
    with pytest.raises(NonFiniteLossError, match=expected):
        policy.met(3, "loss is not finite", "frame 5", 0, Path("kept/000002"))
    with pytest.raises(NonFiniteLossError, match=r"or begin again with a train\.lr below 0\.001"):
        policy.met(3, "loss is not finite", "frame 5", 0, None)


def test_skip_counts_and_stops_once_the_budget_is_spent(caplog: pytest.LogCaptureFixture) -> None:
    policy = NotFinite("skip", most=2, lr=1e-3)
    with caplog.at_level(logging.WARNING, logger="vla_mot.train.spikes"):
        assert policy.met(3, "loss is not finite", "frame 5", 0, None) == 1
        assert policy.met(8, "grad_norm is not finite", "frame 9", 1, None) == 2
    assert "step 8 is left out (2 of at most 2, train.safety.skip_steps): grad_norm" in caplog.text
    assert "The batch holds frame 9." in caplog.text
    caplog.clear()
    assert (
        NotFinite("skip", most=2, lr=1e-3, tells=False).met(3, "loss is not finite", "frame 5", 0, None) == 1
    )
    assert not caplog.text, "another rank says so"
    with pytest.raises(
        NonFiniteLossError,
        match=r"not finite, and 2 such were left out before \(train.safety.skip_steps=2\)\.",
    ):
        policy.met(9, "loss is not finite", "frame 1", 2, None)
    with pytest.raises(NonFiniteLossError, match="and 0 such were left out before"):
        NotFinite("skip", most=0, lr=1e-3).met(3, "loss is not finite", "frame 5", 0, None)
