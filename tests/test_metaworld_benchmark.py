"""tools/metaworld_benchmark.py in miniature: all stages but `lerobot-eval`, whose 500 steps an episode take minutes."""

import json
import os
import runpy
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.conftest import REPOSITORY
from tests.waiting import ctrl_c_once, wait_for
from vla_mot.commands.folders import read_facts, write_config
from vla_mot.errors import ConfigError
from vla_mot.evaluate.metaworld import graphics

pytest.importorskip("metaworld", reason="vla-mot[metaworld] is not installed")

PATH = REPOSITORY / "tools" / "metaworld_benchmark.py"
TASK = "button-press-topdown-v3"
SMALL = (
    "--ours=train.batch_size=2",
    "--ours=train.val_samples=2",
    "--ours=train.val_open_loop=1",
    "--ours=train.val_pictures=0",
    "--ours=train.action_draws=1",
    "--ours=train.log.utilisation=false",
    "--act=--policy.dim_model=32",
    "--act=--policy.dim_feedforward=32",
    "--act=--policy.n_heads=2",
    "--act=--batch_size=1",
    "--act=--policy.n_encoder_layers=1",
)


@pytest.fixture(scope="module")
def tool():
    return runpy.run_path(str(PATH))


@pytest.fixture(scope="module")
def drawable():
    try:
        graphics.choose()
    except ConfigError as error:
        pytest.skip(str(error))


@pytest.mark.sim
@pytest.mark.slow
@pytest.mark.multiprocess
@pytest.mark.usefixtures("drawable")
def test_it_measures_what_fits_trains_both_and_goes_on_where_it_was(tmp_path, capsys, monkeypatch, tool):
    said = f"{tmp_path / 'out'} --tasks {TASK} --demonstrations 2 --minutes 0.02 --rollouts 2 --render fast"
    same = [*said.split(), "--max-steps", "12", *SMALL]
    tool["main"]([*same, "--policies", "act_small"])
    assert "| vla_mot |" not in capsys.readouterr().out
    words = [*same, "--policies", "expert", "ours"]
    tool["main"](words)
    first = [line for line in capsys.readouterr().out.splitlines() if line.startswith("|")]
    assert [line.split("|")[1].strip() for line in first[2:]] == [
        "scripted expert",
        "vla_mot",
        "lerobot's ACT, made small, 10 steps of a chunk executed",
    ]
    assert all("/2, " in line for line in first[2:])
    for name in ("ours", "act_small"):
        assert json.loads((tmp_path / "out" / f"{name}_pace.json").read_text())["seconds_per_step"] > 0
        assert json.loads((tmp_path / "out" / f"{name}.json").read_text())["finished"]
    monkeypatch.setattr(tool["subprocess"], "Popen", None)  # nothing is trained or driven again
    tool["main"](words)
    assert [line for line in capsys.readouterr().out.splitlines() if line.startswith("|")] == first


def benchmark(tool, root: Path, *words: str):
    return tool["Benchmark"](tool["parse"]([str(root), *words]))


def stand_in(folder: Path, script: str) -> Path:
    """What is found as python in a folder where `lerobot-train` is this shell script."""
    program = folder / "lerobot-train"
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o755)
    return folder / "python"


def gone(pid: int) -> bool:
    status = Path(f"/proc/{pid}/status")
    try:
        return "State:\tZ" in status.read_text()
    except OSError:
        return True


def test_the_pace_is_that_of_the_steps_alone(tmp_path, tool):
    """`seconds` go on while a run validates and saves; the rate does not count that."""
    write_config(tmp_path, {"train": {"batch_size": 32}})
    rates = [(10, 40.0, 16.0), (20, 240.0, 64.0), (30, 460.0, 64.0)]
    records = [
        {"step": step, "kind": "train", "seconds": seconds, "samples_per_second": rate}
        for step, seconds, rate in rates
    ] + [{"step": 30, "kind": "validation"}]
    (tmp_path / "log.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    assert tool["seconds_per_step"]([tmp_path]) == 0.5


def test_other_options_want_another_folder(tmp_path, tool):
    benchmark(tool, tmp_path, "--policies", "ours").require_same()
    benchmark(tool, tmp_path, "--policies", "act", "lerobot", "--lerobot-rollouts", "5").require_same()
    benchmark(tool, tmp_path, "--policies").require_same()
    for words, said in (
        (["--minutes", "5"], r"another experiment: minutes was 60, is 5\.0; lerobot_rollouts was 5, is 50\."),
        (["--lerobot-rollouts", "5", "--ours=train.lr=1"], r"ours was \[\], is \['train.lr=1'\]"),
    ):
        with pytest.raises(ConfigError, match=said):
            benchmark(tool, tmp_path, *words).require_same()


def test_lerobot_drives_only_what_was_trained(tmp_path, tool):
    with pytest.raises(ConfigError, match="drives what ours trains, which is not there: add ours"):
        benchmark(tool, tmp_path).drive("lerobot", TASK)


def test_what_was_trained_is_told_not_what_was_planned(tmp_path, tool):
    (tmp_path / "ours" / "checkpoints" / "000070").mkdir(parents=True)
    (tmp_path / "ours" / "checkpoints" / "last").symlink_to("000070")
    (tmp_path / "ours.json").write_text('{"finished": true, "seconds": 180.0}')
    assert benchmark(tool, tmp_path).spent("ours") == "3 min, 70 steps"


def test_a_killed_training_leaves_its_seconds_and_the_next_one_adds_its_own(tmp_path, tool, monkeypatch):
    monkeypatch.setitem(tool["Benchmark"].timed.__globals__, "_NOTED_EVERY", 0.01)
    path, noted = tmp_path / "ours.json", []

    def work() -> None:
        until = time.monotonic() + 10
        while (facts := read_facts(path)) is None or facts["seconds"] <= (noted or [0.0])[-1] + 0.02:
            assert time.monotonic() < until, "nothing was noted"
            time.sleep(0.005)
        noted.append(facts["seconds"])
        if len(noted) == 1:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        benchmark(tool, tmp_path).timed("ours", work)
    assert not read_facts(path)["finished"]
    for _ in range(2):  # the second time it is done
        benchmark(tool, tmp_path).timed("ours", work)
    assert read_facts(path)["finished"] and len(noted) == 2 and read_facts(path)["seconds"] >= noted[1]


@pytest.mark.multiprocess
def test_a_training_without_a_checkpoint_begins_anew(tmp_path, tool, monkeypatch):
    """lerobot refuses a folder that is there."""
    script = 'for word; do case $word in --output_dir=*) mkdir "${word#*=}" || exit 1;; esac; done'
    monkeypatch.setattr(sys, "executable", str(stand_in(tmp_path, script)))
    (tmp_path / "dataset" / "meta").mkdir(parents=True)
    (tmp_path / "dataset" / "meta" / "info.json").write_text('{"total_episodes": 10}')
    (tmp_path / "act" / "checkpoints" / "000010").mkdir(parents=True)
    benchmark(tool, tmp_path).train("act", tmp_path / "act", 20)
    assert not any((tmp_path / "act").iterdir())


@pytest.mark.multiprocess
def test_interrupted_it_ends_what_it_started(tmp_path, tool, monkeypatch):
    python = stand_in(
        tmp_path, f"echo $$ > {tmp_path}/part; mv {tmp_path}/part {tmp_path}/pid; exec sleep 60"
    )
    monkeypatch.setattr(sys, "executable", str(python))
    started = time.monotonic()
    with pytest.raises(KeyboardInterrupt), ctrl_c_once((tmp_path / "pid").is_file):
        tool["lerobot"]("train")
    assert gone(int((tmp_path / "pid").read_text())) and time.monotonic() - started < 30


@pytest.mark.slow
@pytest.mark.multiprocess
@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells a process that its parent died")
def test_killed_it_ends_what_it_started(tmp_path):
    python = stand_in(
        tmp_path, f"echo $$ > {tmp_path}/part; mv {tmp_path}/part {tmp_path}/pid; exec sleep 60"
    )
    code = (
        f"import runpy, sys; tool = runpy.run_path({str(PATH)!r}); sys.executable = {str(python)!r}; "
        "tool['lerobot']('train')"
    )
    with subprocess.Popen([sys.executable, "-c", code]) as process:
        try:
            wait_for((tmp_path / "pid").is_file, process)
        finally:
            os.kill(process.pid, signal.SIGKILL)
    until = time.monotonic() + 10
    while not gone(int((tmp_path / "pid").read_text())):
        assert time.monotonic() < until, "it went on"
        time.sleep(0.05)


def test_a_cell(tool):
    assert tool["cell"](38, 50) == "38/50, 76 % (63–86)"
