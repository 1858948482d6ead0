"""A scheduler that takes the machine back: every process of a job is sent the signal, data workers included."""

import os
import signal
import subprocess
import sys

import pytest

from tests.commands.test_posttrain import assert_same_weights
from tests.train.runs import logged
from tests.waiting import steps_done, wait_for

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
        wait_for(lambda: steps_done(run) >= 3, process)
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
