import logging

import pytest

from vla_mot.commands import console
from vla_mot.commands.arms import _counter
from vla_mot.evaluate.results import EpisodeResult


@pytest.fixture
def clock(monkeypatch):
    """A time that the test moves."""
    now = [100.0]
    monkeypatch.setattr(console.time, "monotonic", lambda: now[0])
    return now


@pytest.mark.parametrize("begun", [0, 12_000])
def test_the_time_left_counts_only_what_was_done_here(clock, capsys, begun):
    """A resumed run begins in the middle: its first steps took no time in this process."""
    with console.progress("train") as advance:
        for step in range(1, 31):
            advance(begun + step, begun + 100)
            clock[0] += 1.0
    assert f"train: {begun + 21}/{begun + 100}, 1:19 left" in capsys.readouterr().out


def test_an_evaluation_says_how_many_episodes_there_are_before_one_has_ended():
    told = []
    count = _counter(2, lambda *words: told.append(words))
    assert told == [(0, 2, "")]
    count(EpisodeResult(0, "push", "push", "done", True, 1, 0.1))
    assert told[1:] == [(1, 2, "1 succeeded")]


def test_the_end_says_how_long_it_took(clock, capsys):
    with console.progress("frames") as advance:
        clock[0] += 65
        advance(3, 3, "done")
    assert "frames: 3/3, 1:05  done" in capsys.readouterr().out


def test_another_rank_than_the_main_one_is_quiet_but_for_its_warnings(capsys, monkeypatch):
    monkeypatch.setattr(console.console, "quiet", True)
    try:
        console.show_library_log(3)
        logging.getLogger("vla_mot.data.faults").warning("skipped %s", "episode 7")
        console.console.print("policy: here")
    finally:
        console.show_library_log()
    said = capsys.readouterr()
    assert "rank 3: skipped episode 7" in said.err
    assert said.out == ""


def test_the_main_rank_says_a_warning_once_without_a_number(capsys):
    for _ in range(2):
        console.show_library_log()
    logging.getLogger("vla_mot.data.faults").warning("skipped episode 7")
    said = capsys.readouterr()
    assert (said.out + said.err).count("skipped episode 7") == 1
    assert "rank" not in said.out
