"""A scheduler that takes the machine back: every process of a job is sent the signal, data workers included."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.commands.test_posttrain import assert_same_weights
from tests.train.runs import logged
from vla_mot.train.log import read_log

SETTINGS = ("train.save_every=1000", "train.val_every=1000", "train.schedule=constant", "data.workers=1")


@pytest.mark.multiprocess
@pytest.mark.slow
def test_pre_emption_saves_the_step_exits_with_75_and_the_run_goes_on_bitwise(vla_mot, training, tmp_path):
    run, whole = tmp_path / "run", tmp_path / "whole"
    words = (*training, *SETTINGS, f"output={run}", "train.steps=100000")
    process = subprocess.Popen(
        [sys.executable, "-m", "vla_mot.commands.main", *words],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        await_steps(process, run, 3)
        os.killpg(process.pid, signal.SIGTERM)
        err = process.communicate(timeout=120)[1]
    finally:
        process.kill()
    assert process.returncode == os.EX_TEMPFAIL == 75, err
    kept = int(os.readlink(run / "checkpoints" / "last"))
    assert f"stopped by SIGTERM after step {kept}" in err
    assert "Traceback" not in err
    assert kept >= 3
    assert vla_mot("posttrain", f"resume={run}", f"train.steps={kept + 2}").code == 0
    assert vla_mot(*training, *SETTINGS, f"output={whole}", f"train.steps={kept + 2}").code == 0
    assert_same_weights(run, whole)
    assert logged(run) == logged(whole)


def await_steps(process: subprocess.Popen[str], run: Path, steps: int) -> None:
    deadline = time.monotonic() + 300
    while not (run.exists() and len([r for r in read_log(run) if r["kind"] == "train"]) >= steps):
        assert process.poll() is None and time.monotonic() < deadline, process.communicate()[1]
        time.sleep(0.05)
