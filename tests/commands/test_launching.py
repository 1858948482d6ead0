"""`--multirun hydra/launcher=…`: what is submitted, as which rank a task runs, and how a stopped job goes on."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import submitit  # noqa: F401  (a job has it imported)
from safetensors.torch import load_file

from tests.data.test_loader import children
from tests.fake_slurm import FakeSlurm
from tests.waiting import ctrl_c_once, steps_done, wait_for
from vla_mot.commands import launching
from vla_mot.conf_dir import conf_dir

SLURM = sorted(path.stem for path in (conf_dir() / "hydra" / "launcher").glob("slurm*.yaml"))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["hydra/launcher=slurm_8x8"], "hydra/launcher=slurm_8x8 submits jobs only with --multirun; add it."),
        (
            ["hydra/launcher=slurm_8x9", "--multirun"],
            "unknown launcher 'slurm_8x9'. Did you mean 'slurm_8x8'?",
        ),
        (["hydra/launcher=slurm_8x8", "--multirun"], "there is no srun on the PATH here"),
        (
            ["hydra/launcher=slurm_8x8", "hydra.launcher.partitoin=gpu", "--multirun"],
            "Could not override 'hydra.launcher.partitoin'",
        ),
    ],
)
def test_a_mistake_gets_a_sentence_and_exit_code_2(vla_mot, words, message, tmp_path):
    said = vla_mot("pretrain", "data.root=x", f"output={tmp_path / 'run'}", *words)
    assert (said.code, message in said.err) == (2, True), said.err
    assert "Traceback" not in said.err


def test_without_submitit_the_extra_is_named(vla_mot, tmp_path, monkeypatch):
    monkeypatch.setattr(launching, "_PLUGIN", "hydra_plugins.nowhere")
    words = ("pretrain", "data.root=x", f"output={tmp_path / 'run'}", "--multirun")
    said = vla_mot(*words, "hydra/launcher=slurm_8x8")
    assert (said.code, "pip install 'vla-mot[slurm]'" in said.err) == (2, True), said.err


def test_a_single_run_lies_in_the_output_folder_itself(vla_mot, training, tmp_path):
    run = tmp_path / "run"
    said = vla_mot(*training, f"output={run}", "train.steps=1", "--multirun")
    assert said.code == 0, said.err
    assert (run / "checkpoints" / "000001").is_dir() and (run / "launch" / "multirun.yaml").is_file()
    said = vla_mot("posttrain", f"resume={run}", "train.steps=2", "--multirun")
    assert said.code == 0, said.err
    assert (run / "checkpoints" / "000002").is_dir()


@pytest.fixture
def slurm(tmp_path) -> FakeSlurm:
    return FakeSlurm(tmp_path / "slurm")


STEPS = 60
MANY_STEPS = (
    f"train.steps={STEPS}",
    "train.save_every=1000",
    "train.val_every=1000",
    "train.batch_size=4",
    "train.ema_decay=0",
)


@contextmanager
def process(*words: str | Path, path: str | None = None) -> Iterator[subprocess.Popen[str]]:
    """A command in a process of its own, on a PATH; killed at the end if it still runs."""
    bin_folder = str(Path(sys.executable).parent)
    environment = os.environ | {"PATH": f"{path or os.environ['PATH']}{os.pathsep}{bin_folder}"}
    words = tuple(map(str, words))
    with subprocess.Popen(words, stdout=-1, stderr=subprocess.STDOUT, text=True, env=environment) as running:
        try:
            yield running
        finally:
            running.kill()


def weights(run: Path) -> dict:
    return load_file(run / "checkpoints" / "last" / "pretrained_model" / "model.safetensors")


def assert_same_weights(run: Path, other: Path) -> None:
    mine, theirs = weights(run), weights(other)
    assert mine.keys() == theirs.keys()
    assert [name for name in mine if not mine[name].equal(theirs[name])] == []


@pytest.fixture(scope="module")
def uninterrupted(training, tmp_path_factory) -> Path:
    """Two ranks that nobody disturbed, started by torchrun."""
    run = tmp_path_factory.mktemp("uninterrupted") / "run"
    torchrun = ("torchrun", "--standalone", "--nproc-per-node", "2", "--no-python", "vla-mot")
    with process(*torchrun, *training, *MANY_STEPS, f"output={run}") as running:
        said = running.communicate(timeout=300)[0]
        assert running.returncode == 0, said
    return run


@pytest.mark.slow
@pytest.mark.multiprocess
def test_a_job_on_this_machine_that_is_preempted_goes_on_as_if_nothing_had_been(
    training, uninterrupted, tmp_path
):
    run = tmp_path / "run"
    words = ("vla-mot", *training, *MANY_STEPS, f"output={run}", "--multirun", "hydra/launcher=local_1x2")
    with process(*words) as running:
        wait_for(lambda: steps_done(run) >= 3, running)
        tasks = children(running.pid)  # of submitit's local executor, which is a child of the command
        assert len(tasks) == 2
        for task in tasks:
            os.kill(task, signal.SIGUSR2)
        said = running.communicate(timeout=300)[0]
        assert running.returncode == 0, said
    (printed,) = (run / "launch").glob("*/*_0_log.out")
    assert "Requeued job" in printed.read_text()
    assert "resumed at step" in printed.read_text()
    assert_same_weights(run, uninterrupted)


@pytest.mark.slow
@pytest.mark.multiprocess
def test_a_job_of_slurm_that_is_preempted_is_queued_again_and_goes_on(
    training, uninterrupted, slurm, tmp_path
):
    run = tmp_path / "run"
    words = ("vla-mot", *training, *MANY_STEPS, f"output={run}", "--multirun", "hydra/launcher=slurm_8x8")
    smaller = ("hydra.launcher.nodes=2", "hydra.launcher.tasks_per_node=1")
    with process(*words, *smaller, path=slurm.path) as running:
        wait_for(lambda: steps_done(run) >= 3, running)
        assert len(slurm.pids()) == 2
        for task in slurm.pids():
            os.kill(task, signal.SIGTERM)  # as SLURM does when it takes a node back …
            os.kill(task, signal.SIGUSR2)  # … and as it was asked to with --signal
        said = running.communicate(timeout=300)[0]
        assert running.returncode == 0, said
    assert slurm.was_requeued()
    assert "resumed at step" in (run / "launch" / "17" / "17_0_log.out").read_text()
    assert_same_weights(run, uninterrupted)


@pytest.mark.parametrize("name", SLURM)
def test_the_batch_file_asks_for_what_the_launcher_is_named_after(
    name, slurm, vla_mot, tmp_path, monkeypatch
):
    """And for being queued again. Nothing trains: the job's first act is to fail."""
    nodes, gpus = name.removeprefix("slurm_").split("x") if "_" in name else ("1", "8")
    words = ("pretrain", f"output={tmp_path / 'run'}", f"data.root={tmp_path}", "model=tiny")
    asked = ("hydra.launcher.partition=gpu", "hydra.launcher.setup=[exit 2]")
    monkeypatch.setenv("PATH", slurm.path)
    with ctrl_c_once(lambda: list(slurm.state.glob("*.code"))):
        said = vla_mot(*words, "--multirun", f"hydra/launcher={name}", *asked)
    assert (said.code, "stay in its queue: `squeue --me`" in said.err) == (130, True), said.err
    batch = slurm.batch_file()
    for flag in (
        f"nodes={nodes}",
        f"ntasks-per-node={gpus}",
        f"gpus-per-node={gpus}",
        "partition=gpu",
        "requeue",
        "signal=USR2@300",
        "open-mode=append",
        f"output={tmp_path}/run/launch/%j/%j_0_log.out",
    ):
        assert f"#SBATCH --{flag}\n" in batch, flag
    assert f"srun --unbuffered --output {tmp_path}/run/launch/%j/%j_%t_log.out" in batch


def test_a_task_of_slurm_is_a_rank(monkeypatch):
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.setenv(name, "left over")
    monkeypatch.delenv("MASTER_PORT")
    slurm = {"JOB_ID": "4711", "JOB_NUM_NODES": "2", "JOB_NODELIST": "node[07-08]", "NTASKS": "16"}
    slurm |= {"PROCID": "11", "LOCALID": "3", "NODEID": "1"}
    for name, value in slurm.items():
        monkeypatch.setenv(f"SLURM_{name}", value)
    monkeypatch.setenv("SUBMITIT_EXECUTOR", "slurm")
    launching.become_rank()
    told = {name: os.environ[name] for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR")}
    assert told == {"RANK": "11", "WORLD_SIZE": "16", "LOCAL_RANK": "3", "MASTER_ADDR": "node07"}
    assert 20000 <= int(os.environ["MASTER_PORT"]) <= 60000
