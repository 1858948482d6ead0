"""One of two ranks is lost: the other says so and ends, whatever happened, and soon."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from tests.conftest import REPOSITORY
from tests.train.losing import AT, WAYS

from vla_mot.train.checkpoint import find_checkpoint
from vla_mot.train.standing import Standing
from vla_mot.train.watch import STUCK_EXIT

pytestmark = [pytest.mark.multiprocess, pytest.mark.slow]
Found = dict[str, dict[str, Any]]


@pytest.fixture(scope="module")
def lost(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Found]:
    """Where two ranks said what, and how they ended, for every way of losing one."""
    folder = tmp_path_factory.mktemp("lost")
    words = [sys.executable, "-m", "tests.train.losing", str(folder), *WAYS]
    done = subprocess.run(words, cwd=REPOSITORY, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return folder, json.loads(done.stdout.splitlines()[-1])


def said(folder: Path, way: str) -> tuple[str, str]:
    first, second = ((folder / way / f"rank-{rank}.err").read_text() for rank in range(2))
    return first, second


@pytest.mark.parametrize(("way", "code"), [("dies", -9), ("fails", 1)])
def test_when_a_rank_dies_the_other_says_so_and_ends(lost: tuple[Path, Found], way: str, code: int) -> None:
    folder, found = lost
    other, own = found[way]["codes"]
    assert own == code
    assert other == 1
    assert found[way]["seconds"] < 30
    first, second = said(folder, way)
    assert "RankLostError: another rank ended, or cannot be reached" in first
    assert "RankLostError" not in second
    assert ("ZeroDivisionError: of rank 1 alone" in second) == (way == "fails")


def test_when_a_rank_hangs_its_stack_is_told_and_both_end(lost: tuple[Path, Found]) -> None:
    folder, found = lost
    assert found["hangs"]["codes"] == [STUCK_EXIT, STUCK_EXIT]
    assert found["hangs"]["seconds"] < 30
    reports = [(folder / "hangs" / "stuck" / f"rank-{rank}.txt").read_text() for rank in range(2)]
    waiting, stuck = (Standing.parse(report.partition("\n")[0]) for report in reports)
    assert waiting is not None and stuck is not None
    assert (stuck.step, stuck.phase) == (AT, "data")
    assert waiting.step == AT and waiting.waits and not stuck.waits
    assert "in sleeps_forever" in reports[1]
    assert "in sleeps_forever" not in reports[0]
    for text in said(folder, "hangs"):
        assert f"The others wait for rank 1, still at step {AT}, phase data" in text


def test_a_step_that_is_not_finite_names_the_samples_of_every_rank(lost: tuple[Path, Found]) -> None:
    folder, found = lost
    assert found["is spoilt"]["codes"] == [1, 1]
    each = [f"what was drawn for step {AT} on rank {rank}" for rank in range(2)]
    for text in said(folder, "is spoilt"):
        assert f"NonFiniteLossError: step {AT}: " in text
        assert f"The batch holds {'; '.join(each)}." in text


def test_what_the_main_rank_could_not_write_is_its_own_fault_and_told_to_the_other(
    lost: tuple[Path, Found],
) -> None:
    folder, found = lost
    assert found["is in the way"]["codes"] == [1, 1]
    first, second = said(folder, "is in the way")
    assert "NotADirectoryError" in first or "FileExistsError" in first
    assert "RankLostError: rank 0 could not begin a checkpoint; its own message says why." in second


def test_a_signal_to_one_rank_stops_both_after_the_same_step(lost: tuple[Path, Found]) -> None:
    folder, found = lost
    assert found["is asked"]["codes"] == [1, 1]
    for text in said(folder, "is asked"):
        assert f"TrainingStoppedError: stopped by SIGTERM after step {AT + 1}" in text
    assert find_checkpoint(folder / "is asked").name == f"{AT + 1:06d}"
