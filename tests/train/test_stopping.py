import signal
import threading
import time
from itertools import combinations_with_replacement
from signal import Signals

import pytest
import torch

from vla_mot.train.stopping import (
    MOST_RANKS,
    STOP_SIGNALS,
    StopRequests,
    agreed_stop,
    is_preemption,
    stop_code,
)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_ranks_that_heard_different_things_agree_on_the_weightiest(dtype: torch.dtype) -> None:
    for heard in combinations_with_replacement([None, *STOP_SIGNALS], 4):
        expected = max(heard, key=lambda asked: -1 if asked is None else STOP_SIGNALS.index(asked))
        codes = torch.tensor([stop_code(asked) for asked in heard], dtype=dtype)
        assert agreed_stop(float(codes.sum())) is expected
        assert agreed_stop(float(codes.max())) is expected


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("number", STOP_SIGNALS)
def test_no_number_of_ranks_makes_a_request_weightier(number: Signals, dtype: torch.dtype) -> None:
    assert agreed_stop(float(torch.full((MOST_RANKS,), stop_code(number), dtype=dtype).sum())) is number


@pytest.mark.parametrize("number", STOP_SIGNALS)
def test_a_signal_is_remembered_and_what_handled_it_before_comes_back(number: Signals) -> None:
    before = {each: signal.getsignal(each) for each in STOP_SIGNALS}
    with StopRequests() as requests:
        assert requests.asked is None
        signal.raise_signal(number)
        assert requests.asked is number
    assert {each: signal.getsignal(each) for each in STOP_SIGNALS} == before
    assert requests.asked is number
    assert is_preemption(number) == (number is not signal.SIGINT)


def test_a_lighter_signal_later_changes_nothing() -> None:
    with StopRequests() as requests:
        signal.raise_signal(signal.SIGUSR2)
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGTERM)
        assert requests.asked is signal.SIGUSR2


def test_the_second_ctrl_c_stops_at_once_but_the_first_may_arrive_twice() -> None:
    reached = False
    with pytest.raises(KeyboardInterrupt), StopRequests():
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)
        reached = True
        time.sleep(0.35)
        signal.raise_signal(signal.SIGINT)
    assert reached


def test_outside_the_main_thread_nothing_is_installed() -> None:
    before = signal.getsignal(signal.SIGTERM)
    installed = []

    def elsewhere() -> None:
        with StopRequests():
            installed.append(signal.getsignal(signal.SIGTERM))

    thread = threading.Thread(target=elsewhere)
    thread.start()
    thread.join()
    assert installed == [before]


def test_the_launcher_s_handler_is_called_when_all_is_saved() -> None:
    called = []
    before = signal.signal(signal.SIGUSR2, lambda number, frame: called.append(number))
    try:
        with StopRequests() as requests:
            signal.raise_signal(signal.SIGUSR2)
            assert not called
        requests.hand_over(signal.SIGTERM)  # which nobody had claimed
        requests.hand_over(signal.SIGINT)  # Python's own handler would raise
        assert not called
        requests.hand_over(signal.SIGUSR2)
        assert called == [signal.SIGUSR2]
        started = time.monotonic()
        requests.hand_over(signal.SIGUSR2, rank=1, linger=0.2)
        assert called == [signal.SIGUSR2] * 2
        assert time.monotonic() - started >= 0.2
    finally:
        signal.signal(signal.SIGUSR2, before)


def test_a_launcher_s_handler_may_end_the_process() -> None:
    """As submitit's does on the first rank, once the job is queued again."""

    def requeue(number: int, frame: object) -> None:
        raise SystemExit(-1)

    before = signal.signal(signal.SIGUSR2, requeue)
    try:
        with StopRequests() as requests:
            signal.raise_signal(signal.SIGUSR2)
        with pytest.raises(SystemExit):
            requests.hand_over(signal.SIGUSR2)
    finally:
        signal.signal(signal.SIGUSR2, before)
