"""The demo at miniature scale, end to end, as a newcomer runs it: a command in a shell."""

import csv
import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.interrupting import interrupt_when, vla_mot_process
from vla_mot.commands.folders import read_facts
from vla_mot.evaluate.results import Evaluation
from vla_mot.infer.policy import Policy

pytestmark = [pytest.mark.multiprocess, pytest.mark.sim]


SETTINGS = ("scale=miniature", "train.steps=60", "train.save_every=30", "train.val_every=30")


def made(output: Path) -> dict[str, int]:
    return {str(path): path.stat().st_mtime_ns for path in sorted(output.rglob("*")) if path.is_file()}


@pytest.mark.slow
def test_interrupted_then_finished_then_nothing_to_do(tmp_path, vla_mot):
    output = tmp_path / "demo"
    with vla_mot_process("demo", f"output={output}", *SETTINGS) as process:
        err = interrupt_when(process, (output / "run" / "checkpoints" / "000000").exists)
    assert process.returncode == 130, err
    assert "the same command goes on from there" in err
    kept = int(os.readlink(output / "run" / "checkpoints" / "last"))
    recorded = made(output / "dataset")

    done = vla_mot("demo", f"output={output}", *SETTINGS)
    assert done.code == 0, done.err
    first = done.out
    assert "1/9 record demonstrations: done before" in first
    assert f"resumed at step {kept}" in first
    assert made(output / "dataset") == recorded
    check_results(output, first)

    check_lerobot_drives_it(output / "policy", tmp_path / "lerobot")

    before = made(output)
    second = vla_mot("demo", f"output={output}", *SETTINGS)
    assert second.code == 0
    assert second.out.count("done before") == 9
    assert made(output) == before


def found_by(output: Path) -> dict:
    """Everything that a demo found, without how long it took and on what."""
    folder = output / "evaluation"
    results = json.loads((folder / "results.json").read_text())
    del results["provenance"]
    for arm in results["arms"]:
        del arm["seconds"]
    episodes = [row | {"seconds": None} for row in csv.DictReader((folder / "episodes.csv").open())]
    weights = (output / "policy" / "model.safetensors").read_bytes()
    return {
        "results": results,
        "episodes": episodes,
        "foresight": json.loads((folder / "foresight.json").read_text()),
        "weights": hashlib.sha256(weights).hexdigest(),
    }


@pytest.mark.slow
def test_a_seed_decides_everything(tmp_path):
    found = {}
    for name, seed in (("first", 0), ("again", 0), ("other", 1)):
        words = ["demo", f"output={tmp_path / name}", "scale=miniature", f"train.seed={seed}"]
        command = [sys.executable, "-m", "vla_mot.commands.main", *words]
        done = subprocess.run(command, capture_output=True, text=True, timeout=600)
        assert done.returncode == 0, done.stderr
        found[name] = found_by(tmp_path / name)
    assert found["first"] == found["again"]
    assert found["first"]["weights"] != found["other"]["weights"]


def check_lerobot_drives_it(policy: Path, output: Path) -> None:
    """Stock lerobot finds policy and environment by their distributions, and runs what the demo trained."""
    program = Path(sys.executable).with_name("lerobot-eval")
    options = [
        f"--policy.path={policy}",
        "--env.type=conveyor",
        "--env.max_steps=8",
        f"--output_dir={output}",
    ]
    counts = ["--eval.n_episodes=2", "--eval.batch_size=2", "--eval.use_async_envs=false"]
    done = subprocess.run(
        [program, *options, *counts, "--policy.device=cpu"], capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 0, done.stderr[-4000:]
    assert json.loads((output / "eval_info.json").read_text())["overall"]["n_episodes"] == 2


def check_results(output: Path, said: str) -> None:
    for label in ("trained policy", "history replaced", "other object's instruction", "untrained", "expert"):
        assert label in said
    assert "copy of the last frame" in said
    assert str(output / "report.html") in said.replace("\n", "")
    page = (output / "report.html").read_text()
    assert len(page) > 10_000
    assert "http://" not in page.replace("http://www.w3.org", "")
    evaluation = Evaluation.load(output / "evaluation")
    names = ["policy", "no_history", "other_instruction", "untrained", "expert"]
    assert [arm.name for arm in evaluation.arms] == names
    assert {tuple(episode.seed for episode in arm.episodes) for arm in evaluation.arms} == {(100000, 100001)}
    assert evaluation.foresight is not None
    assert (output / "picture.png").is_file()
    policy = Policy.from_pretrained(output / "policy")
    assert policy.robot.embodiment.name == "conveyor"
    assert sorted(read_facts(path)["finished"] for path in (output / "stages").iterdir()) == [True] * 9
