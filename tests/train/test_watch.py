"""The watchdog in processes of its own, since it ends them; nothing heavy is imported, so they are quick."""

import subprocess
import sys
import threading
from pathlib import Path

import pytest

from vla_mot.train.standing import Standing, culprits
from vla_mot.train.watch import STUCK_EXIT, Watchdog

PRELUDE = """
import ctypes, sys, threading, time
from pathlib import Path
from vla_mot.train.watch import Watchdog

def trains_on(watchdog, seconds):
    began, step = time.monotonic(), 0
    while time.monotonic() - began < seconds:
        for phase in ("data", "forward", "backward", "optimizer"):
            watchdog.enter(step, phase)
            time.sleep(0.01)
        step += 1

def reads_forever():
    time.sleep(60)

def native_code_that_never_returns():
    ctypes.PyDLL(None).sleep(60)  # unlike CDLL, it holds the interpreter meanwhile

run, limit, rank, size = Path(sys.argv[1]), float(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4])
with Watchdog(run, limit or None, rank, size) as watchdog:
"""


def start(run: Path, body: str, limit: float = 0.4, rank: int = 0, size: int = 1) -> subprocess.Popen[str]:
    script = PRELUDE + "".join(f"    {line}\n" for line in body.splitlines())
    words = [sys.executable, "-c", script, str(run), str(limit), str(rank), str(size)]
    return subprocess.Popen(words, stderr=subprocess.PIPE, text=True)


def ended(process: subprocess.Popen[str]) -> tuple[int, str]:
    err = process.communicate(timeout=30)[1]
    return process.returncode, err


def test_who_stands_still_says_where_and_ends(tmp_path: Path) -> None:
    body = """
trains_on(watchdog, 0.1)
threading.Thread(target=time.sleep, args=(60,), name="batch-prefetch", daemon=True).start()
watchdog.enter(7, "data")
reads_forever()
"""
    code, err = ended(start(tmp_path, body))
    assert code == STUCK_EXIT
    report = (tmp_path / "stuck" / "rank-0.txt").read_text()
    assert report in err
    standing = Standing.parse(report.partition("\n")[0])
    assert standing is not None
    assert (standing.rank, standing.step, standing.phase) == (0, 7, "data")
    assert 0.4 <= standing.seconds < 5
    assert "(train.safety.stuck_seconds)" in report
    assert "data.prepare=false" in report and "raise train.safety.stuck_seconds" in report
    main = report.partition("thread MainThread")[2].partition("thread ")[0]
    assert main.index("in <module>") < main.index("in reads_forever")  # innermost call last
    assert "thread batch-prefetch" in report
    assert "watchdog (" not in report  # its own stack tells nothing
    assert f"the stacks are in {tmp_path / 'stuck'}" in err


def test_a_call_that_holds_the_interpreter_is_told_as_well(tmp_path: Path) -> None:
    code, err = ended(
        start(tmp_path, "time.sleep(0.3)\nwatchdog.enter(7, 'forward')\nnative_code_that_never_returns()")
    )
    assert code == 1  # faulthandler's
    assert "in native_code_that_never_returns" in err


def test_only_who_waits_for_data_is_told_what_it_may_wait_for(tmp_path: Path) -> None:
    code, err = ended(start(tmp_path, "watchdog.enter(7, 'forward')\nreads_forever()"))
    assert code == STUCK_EXIT
    assert "phase forward" in err and "data.prepare" not in err


@pytest.mark.parametrize(
    ("limit", "body"), [(0.2, "trains_on(watchdog, 1.5)"), (0.0, "time.sleep(1)")], ids=["progress", "off"]
)
def test_progress_or_no_watch_at_all_ends_nothing(tmp_path: Path, limit: float, body: str) -> None:
    assert ended(start(tmp_path, body, limit)) == (0, "")
    assert not (tmp_path / "stuck").exists()


def test_after_the_watch_one_may_stand_still(tmp_path: Path) -> None:
    with Watchdog(tmp_path, 0.2) as watchdog:
        watchdog.enter(0, "data")
        assert "watchdog" in {thread.name for thread in threading.enumerate()}
    assert "watchdog" not in {thread.name for thread in threading.enumerate()}


def test_the_rank_that_the_others_wait_for_is_named(tmp_path: Path) -> None:
    """Rank 1 reads forever; rank 0 got two phases further, where it waits."""
    waits = start(
        tmp_path,
        "watchdog.enter(7, 'data')\nwatchdog.enter(7, 'forward')\nwatchdog.enter(7, 'backward')\ntime.sleep(60)",
        rank=0,
        size=2,
    )
    reads = start(tmp_path, "watchdog.enter(7, 'data')\nreads_forever()", rank=1, size=2)
    for process in (waits, reads):
        code, err = ended(process)
        assert code == STUCK_EXIT
        assert "The others wait for rank 1, still at step 7, phase data" in err
    assert "in reads_forever" in (tmp_path / "stuck" / "rank-1.txt").read_text()
    assert "in reads_forever" not in (tmp_path / "stuck" / "rank-0.txt").read_text()


def test_a_rank_ends_with_one_that_is_stuck_and_says_where_it_was(tmp_path: Path) -> None:
    busy = start(tmp_path, "trains_on(watchdog, 60)", rank=0, size=2)
    stuck = start(tmp_path, "watchdog.enter(0, 'data')\nreads_forever()", rank=1, size=2)
    assert ended(stuck)[0] == STUCK_EXIT
    code, err = ended(busy)
    assert code == STUCK_EXIT
    assert "because another rank made no progress" in err
    assert "The others wait for rank 1" in err


def test_a_silent_rank_is_not_waited_for(tmp_path: Path) -> None:
    code, err = ended(start(tmp_path, "time.sleep(60)", rank=0, size=3))
    assert code == STUCK_EXIT
    assert "No word from ranks 1, 2: dead" in err


def test_what_an_earlier_life_of_the_run_left_is_no_reason_to_end(tmp_path: Path) -> None:
    (tmp_path / "stuck").mkdir()
    left = Standing(1, 3, "data", 12, 9.0)
    (tmp_path / "stuck" / "rank-1.txt").write_text(f"{left}\n")
    assert ended(start(tmp_path, "trains_on(watchdog, 1)", size=2)) == (0, "")
    code, err = ended(start(tmp_path, "time.sleep(60)", size=2))
    assert code == STUCK_EXIT
    assert "No word from rank 1: dead" in err


def test_a_folder_that_cannot_be_written_keeps_nobody_from_ending(tmp_path: Path) -> None:
    (tmp_path / "stuck").write_text("a file where the folder should be")
    code, err = ended(start(tmp_path, "watchdog.enter(7, 'data')\nreads_forever()", size=2))
    assert code == STUCK_EXIT
    assert "in reads_forever" in err
    assert "cannot be written" in err


def test_a_standing_reads_back_as_it_was_told() -> None:
    for waits in (False, True):
        standing = Standing(rank=3, step=12, phase="backward", entered=60, seconds=30.5, waits=waits)
        assert Standing.parse(f"{standing}, since yesterday, on a machine") == standing
    assert Standing.parse("Traceback (most recent call last):") is None


@pytest.mark.parametrize(
    ("entered", "told"),
    [
        ((5, 3, 5), "The others wait for rank 1, still at step 7, phase data"),
        ((5, 3, 3), "The others wait for ranks 1, 2, still at"),
        ((4, 4, 4), "All ranks stand at the same place, none is behind"),
        ((4, 4), "No word from rank 2: dead"),
        ((9,) * 2 + (8,) * 20, "wait for ranks 2, 3, 4, 5, 6, 7, 8, 9, … (20 in all), still"),
    ],
)
def test_the_ranks_that_entered_fewest_phases_are_the_culprits(entered: tuple[int, ...], told: str) -> None:
    standings = [Standing(rank, 7, "data", number, 1.0) for rank, number in enumerate(entered)]
    assert told in culprits(standings, max(3, len(entered)))


def test_who_waits_in_an_exchange_is_not_the_one_that_the_others_wait_for() -> None:
    standings = [Standing(rank, 7, "data", 4, 1.0, waits=rank != 2) for rank in range(4)]
    assert "The others wait for rank 2, still at step 7, phase data" in culprits(standings, 4)
    everybody = [Standing(rank, 7, "data", 4, 1.0, waits=True) for rank in range(4)]
    assert "none is behind" in culprits(everybody, 4)
