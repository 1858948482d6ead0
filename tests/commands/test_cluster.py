"""The page on clusters, followed literally on one machine: its own words, but for the folder, the port and sizes."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from tests.fake_slurm import FakeSlurm
from tests.waiting import steps_done, wait_for
from vla_mot.train.log import read_log

pytestmark = [pytest.mark.slow, pytest.mark.multiprocess]

STEPS = 40
SMALL = (
    f"train.steps={STEPS} train.batch_size=8 train.warmup_steps=1 train.log_every=1 train.val_every=1000 "
    "train.save_every=1000 train.val_samples=8 train.action_draws=1"
)
INSTALL = 'pip install ".[lerobot,slurm]" ./packages/lerobot_policy_vla_mot   # in a checkout\n'


class Page:
    """The page's commands by heading, to be run in a shell that has its variables."""

    def __init__(self, file: Path, shared: Path) -> None:
        text = file.read_text()
        self.blocks = re.findall(r"```sh\n(.*?)```", text, flags=re.DOTALL)
        self.by_heading = {
            section.splitlines()[0]: re.findall(r"```sh\n(.*?)```", section, flags=re.DOTALL)
            for section in re.split(r"^## ", text, flags=re.MULTILINE)[1:]
        }
        self.variables = changed(
            self.blocks[0],
            ("$HOME/vla-mot", str(shared)),
            ("127.0.0.1:29500", f"127.0.0.1:{free_port()}"),
            ("train.steps=1000", SMALL),
        )

    @contextmanager
    def running(self, block: str, path: Path | None = None) -> Iterator[subprocess.Popen[str]]:
        """The words of a block in a process of its own, killed at the end if it still runs."""
        here = f"{path}:" if path else ""
        script = f"export PATH={here}$PATH:{Path(sys.executable).parent}\n{self.variables}\nset -e\n{block}"
        output = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
        with subprocess.Popen(["bash", "-c", script], **output) as process:
            try:
                yield process
            finally:
                process.kill()

    def run(self, block: str, *, nodes: int = 1) -> list[str]:
        """Run a block to its end on each of several nodes at once; returns what each printed."""
        with ExitStack() as stack:
            running = [stack.enter_context(self.running(block)) for _ in range(nodes)]
            said = [process.communicate(timeout=400)[0] for process in running]
            assert [process.returncode for process in running] == [0] * nodes, "\n".join(said)
        return said


def changed(text: str, *pairs: tuple[str, str]) -> str:
    for before, after in pairs:
        assert before in text, before
        text = text.replace(before, after)
    return text


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.fixture(scope="module")
def shared(three_datasets, tmp_path_factory) -> Path:
    """The folder that all nodes see, with the recordings in it."""
    folder = tmp_path_factory.mktemp("shared")
    (folder / "three").symlink_to(three_datasets)
    return folder


@pytest.fixture(scope="module")
def page(repository, shared) -> Page:
    """The page, after its preparations."""
    page = Page(repository / "docs" / "cluster.md", shared)
    (preparing,) = page.by_heading["Prepare once"]
    recording = [line for line in preparing.splitlines() if line.startswith("vla-mot data record")]
    assert len(recording) == 3, "which the fixture has done"
    page.run("\n".join(line for line in preparing.splitlines() if line not in recording))
    assert (shared / "stats.json").is_file()
    return page


def newest(run: Path) -> str:
    return (run / "checkpoints" / "last").readlink().name


def test_every_block_is_followed(repository, tmp_path):
    page = Page(repository / "docs" / "cluster.md", tmp_path)
    followed = {"Prepare once": 1, "Dry run": 1, "One node": 1, "Several nodes": 1, "SLURM": 2}
    assert {heading: len(blocks) for heading, blocks in page.by_heading.items() if blocks} == followed
    assert len(page.blocks) == 1 + sum(followed.values())


def test_the_dry_run(page):
    (said,) = page.run(page.by_heading["Dry run"][0])
    assert "2 ranks" in said


def test_one_node(page, shared):
    page.run(page.by_heading["One node"][0])
    assert newest(shared / "runs" / "one") == f"{STEPS:06d}"


def test_two_nodes_that_are_stopped_and_started_with_the_same_words(page, shared):
    run = shared / "runs" / "many"
    words = changed(page.by_heading["Several nodes"][0], ("torchrun ", "exec torchrun "))
    with page.running(words) as first, page.running(words) as second:
        wait_for(lambda: steps_done(run) >= 3, first)
        for agent in (first, second):
            agent.send_signal(signal.SIGTERM)
        said = [agent.communicate(timeout=120)[0] for agent in (first, second)]
        assert first.returncode != 0 and second.returncode != 0, said
    stopped = int(newest(run))
    assert 3 <= stopped < STEPS, said
    assert json.loads((run / "run.json").read_text())["ranks"] == 2
    printed = [file.read_text() for file in (run / "launch").rglob("stderr.log")]
    assert len([text for text in printed if f"stopped by SIGTERM after step {stopped}" in text]) == 2, printed

    said = page.run(words, nodes=2)
    assert f"resumed at step {stopped}" in "".join(said)
    assert newest(run) == f"{STEPS:06d}"
    steps = [record["step"] for record in read_log(run) if record["kind"] == "train"]
    assert steps == list(range(1, STEPS + 1))


def ranks_of(agent: subprocess.Popen[str]) -> list[int]:
    said = subprocess.run(["ps", "-o", "pid=", "--ppid", str(agent.pid)], capture_output=True, text=True)
    return [int(pid) for pid in said.stdout.split()]


def test_ranks_that_stop_or_die_are_started_again(page, shared):
    run = shared / "runs" / "again"
    words = page.by_heading["Several nodes"][0]
    words = changed(
        words, ("torchrun ", "exec torchrun "), ("runs/many", "runs/again"), ("id many", "id again")
    )
    with page.running(words) as first, page.running(words) as second:
        wait_for(lambda: steps_done(run) >= 3, first)
        os.kill(ranks_of(first)[0], signal.SIGUSR1)
        wait_for(lambda: newest(run) != "000000", first)
        stopped = int(newest(run))
        wait_for(lambda: steps_done(run) >= stopped + 2, first)
        os.kill(ranks_of(second)[0], signal.SIGKILL)
        said = [agent.communicate(timeout=300)[0] for agent in (first, second)]
        assert [first.returncode, second.returncode] == [0, 0], said
    assert newest(run) == f"{STEPS:06d}"
    assert "".join(said).count(f"resumed at step {stopped} ") == 2, said
    steps = [record["step"] for record in read_log(run) if record["kind"] == "train"]
    assert steps == list(range(1, STEPS + 1))


def test_a_job_of_slurm_is_submitted(page, tmp_path):
    """64 ranks are too many here; the job's first act is to fail."""
    slurm = FakeSlurm(tmp_path / "slurm")
    words = changed(page.by_heading["SLURM"][0], (INSTALL, ""))
    with page.running(f"{words.rstrip()} 'hydra.launcher.setup=[exit 2]'", path=slurm.bin) as running:
        wait_for(lambda: list(slurm.state.glob("*.code")), running)
    assert "#SBATCH --nodes=8\n" in slurm.batch_file()
    assert "#SBATCH --account=me\n" in slurm.batch_file()


def test_two_ranks_as_a_job_on_this_machine(page, shared):
    page.run(page.by_heading["SLURM"][1])
    assert newest(shared / "runs" / "local") == f"{STEPS:06d}"


def test_a_job_that_fails_says_why(page, shared):
    words = changed(page.by_heading["SLURM"][1], ("$WHAT", "$WHAT data.root=$SHARED/nowhere"))
    with page.running(words) as running:
        said = running.communicate(timeout=300)[0]
    assert running.returncode == 1
    assert f"error: data.root {shared}/nowhere is no folder" in said and "Traceback" not in said, said
