import pytest

from vla_mot.commands import console


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


def test_the_end_says_how_long_it_took(clock, capsys):
    with console.progress("frames") as advance:
        clock[0] += 65
        advance(3, 3, "done")
    assert "frames: 3/3, 1:05  done" in capsys.readouterr().out
