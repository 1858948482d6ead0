"""tools/foresight_ablation.py: what it makes of results, and the whole of it at miniature scale, killed on its way."""

import json
import os
import re
import runpy
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.conftest import REPOSITORY
from tests.waiting import wait_for
from vla_mot.errors import ConfigError
from vla_mot.evaluate.results import find_evaluations
from vla_mot.hub.checkpoint import open_checkpoint
from vla_mot.train.log import read_log

PATH = REPOSITORY / "tools" / "foresight_ablation.py"
TOOL = runpy.run_path(str(PATH))
MINIATURE = ("seeds=1", "steps=4", "episodes=2", "demonstrations=4", "turns=2", "checkpoints=2", "arms=A,B")
QUICK = (
    "train.batch_size=4",
    "train.val_every=4",
    "train.val_samples=4",
    "train.log_every=1",
    "train.warmup_steps=1",
)


def settings(output: Path, *words: str):
    return TOOL["Settings"].read([f"output={output}", *words])


def test_words_are_settings_or_go_to_training(tmp_path):
    read = settings(tmp_path, "seeds=2", "steps=10", "checkpoints=4", "arms=C,A", "train.lr=1e-3")
    assert (read.seeds, read.grid, read.arms, read.words) == (
        2,
        [3, 6, 9, 10],
        ("A", "C"),
        ("train.lr=1e-3",),
    )
    for words, said in (
        (("seeds=two",), "whole numbers"),
        (("steps=0",), "at least 1"),
        (("arms=B,C",), "with A"),
        (("arms=A,E",), "some of A,B,C,D"),
    ):
        with pytest.raises(ConfigError, match=said):
            settings(tmp_path, *words)
    with pytest.raises(ConfigError, match="output must be given"):
        TOOL["Settings"].read(["seeds=2"])


def test_another_experiment_is_not_mixed_in_but_more_seeds_and_arms_are_welcome(tmp_path):
    TOOL["require_same"](settings(tmp_path, "steps=10", "seeds=1", "arms=A,B"))
    TOOL["require_same"](settings(tmp_path, "steps=10", "seeds=3", "turns=2"))
    with pytest.raises(ConfigError, match="at_once was 1, is 2"):
        TOOL["require_same"](settings(tmp_path, "steps=10", "at_once=2"))
    with pytest.raises(ConfigError, match=r"steps was 10, is 20; words was \[\], is \['train.lr=1'\]"):
        TOOL["require_same"](settings(tmp_path, "steps=20", "train.lr=1"))


def test_arms_take_turns_and_the_full_one_comes_first(tmp_path):
    order = list(
        TOOL["turns"](settings(tmp_path, "seeds=2", "steps=8", "checkpoints=4", "turns=2", "arms=A,B,C"))
    )
    assert order == [
        *(("A", 0, 4), ("B", 0, 4), ("C", 0, 4), ("A", 1, 4), ("B", 1, 4), ("C", 1, 4)),
        *(("B", 0, 8), ("C", 0, 8), ("A", 0, 8), ("B", 1, 8), ("C", 1, 8), ("A", 1, 8)),
    ]
    more = TOOL["turns"](settings(tmp_path, "seeds=1", "steps=3", "checkpoints=2", "turns=5", "arms=A"))
    assert {until for _, _, until in more} == {2, 3}


def test_a_run_waits_for_what_it_needs_and_for_its_own_last_turn(tmp_path):
    asked = settings(tmp_path, "seeds=2")
    runs = [(arm, seed) for seed in range(2) for arm in "ABCD"]

    def ready(*busy: Path) -> list[tuple[str, int]]:
        return [run for run in runs if TOOL["is_ready"](asked, *run, busy)]

    def save(arm: str, seed: int) -> None:
        (asked.run(arm, seed) / "checkpoints" / "000000").mkdir(parents=True)

    assert ready() == [("A", 0)]
    save("A", 0)
    assert ready() == [run for run in runs if run != ("B", 1)]
    assert ready(asked.run("A", 0)) == [run for run in runs if run not in (("A", 0), ("B", 1))]
    save("A", 1)
    assert ready() == runs


def test_runs_side_by_side_share_the_cores_that_may_be_used(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(6)))
    assert [TOOL["share"](count) for count in (1, 2, 8)] == [
        {},
        {"OMP_NUM_THREADS": "3"},
        {"OMP_NUM_THREADS": "1"},
    ]


def test_equal_wall_clock_is_what_the_quickest_arm_took(tmp_path):
    asked = settings(tmp_path, "steps=100", "checkpoints=10")
    chosen = TOOL["equal_time"](asked, {"A": 0.2, "B": 0.1, "C": 0.16, "D": 0.21})
    assert chosen == {"A": 50, "B": 100, "C": 60, "D": 50}


def test_the_table_says_what_was_found(tmp_path):
    asked = settings(tmp_path, "arms=A,C", "seeds=2", "steps=100")
    won = {
        "A": [[True, True, False, True], [True] * 4],
        "C": [[True, False, False, True], [True, True, False, True]],
    }
    wins = {
        (arm, motion, budget): won[arm if motion == "dynamic" else "A"]
        for arm in "AC"
        for motion in TOOL["MOTIONS"]
        for budget in TOOL["BUDGETS"]
    }
    error = {"foresight": {"head": [1.0, 1.2]}, "copy_last": {"head": [4.0, 4.0]}}
    found = TOOL["summary"](asked, wins, {"A": 0.2, "C": 0.1}, {"A": 50, "C": 100}, {"A": error, "C": error})
    lines = [line.strip("|").split("|") for line in TOOL["table"](json.loads(json.dumps(found))).splitlines()]
    assert [cell.strip() for cell in lines[2][:3]] == [
        "foresight, A − C",
        "+25.0 (not known)",
        "+0.0 (not known)",
    ]
    full, less = ([cell.strip() for cell in line] for line in (lines[6], lines[7]))
    assert full[1] == "87.5 % (0.0 … 100.0)" and full[-3:] == ["1.10", "0.200", "50"]
    assert less[0].startswith("C no foresight loss") and less[-3:] == ["1.10, untrained", "0.100", "100"]
    assert "head (copying: 4.00)" in lines[4][5]
    assert lines[-1][0].startswith(
        f"(`python tools/foresight_ablation.py output={tmp_path} arms=A,C seeds=2 steps=100`"
    )
    TOOL["draw"](found, tmp_path / "ablation.png")
    assert (tmp_path / "ablation.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.slow
@pytest.mark.multiprocess
@pytest.mark.sim
def test_killed_on_its_way_it_goes_on_with_what_is_there(tmp_path, capsys):
    words = [f"output={tmp_path}", "at_once=2", *MINIATURE, *QUICK]
    process = subprocess.Popen(
        [sys.executable, str(PATH), *words], start_new_session=True, stdout=subprocess.DEVNULL
    )
    try:
        wait_for((tmp_path / "runs" / "B-0" / "config.yaml").is_file, process)
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    before = (tmp_path / "dataset" / "meta" / "info.json").stat().st_mtime_ns
    assert not find_evaluations(tmp_path)
    TOOL["main"](words)
    assert (tmp_path / "dataset" / "meta" / "info.json").stat().st_mtime_ns == before
    for arm in "AB":
        steps = [
            record["step"] for record in read_log(tmp_path / "runs" / f"{arm}-0") if record["kind"] == "train"
        ]
        assert steps == [1, 2, 3, 4]
    full, less = (
        open_checkpoint(tmp_path / "runs" / f"{arm}-0" / "checkpoints" / "000000" / "pretrained_model")
        .load()
        .state_dict()
        for arm in "AB"
    )
    assert all(torch.equal(weight, full[name]) for name, weight in less.items()) and len(less) < len(full)
    assert (tmp_path / "evaluation" / "A-0" / "000004-dynamic" / "foresight.json").is_file()
    table = (tmp_path / "table.md").read_text()
    assert re.search(r"generation expert, A − B \| [+-]\d+\.\d \(not known\)", table)
    assert (tmp_path / "ablation.png").is_file() and json.loads((tmp_path / "results.json").read_text())[
        "effects"
    ]
    made = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("episodes.csv")}
    TOOL["main"](words)  # nothing is left to do
    assert (
        made == {path: path.stat().st_mtime_ns for path in tmp_path.rglob("episodes.csv")} and len(made) >= 4
    )
