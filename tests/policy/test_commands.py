"""Stock LeRobot commands on our policy, as a user types them: real processes, offline. More of them: test_wheels.py."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.policy.conftest import REPO_ID

DATASET = [f"--dataset.repo_id={REPO_ID}", "--num_workers=0", "--log_freq=1", "--batch_size=4"]
COMMON = ["--policy.device=cpu", "--policy.push_to_hub=false", "--env_eval_freq=0"]


def lerobot(command: str, *options: str, fails: bool = False) -> str:
    """Run a command of the environment that runs the tests; returns what it said."""
    program = Path(sys.executable).with_name(f"lerobot-{command}")
    done = subprocess.run([program, *options], capture_output=True, text=True, timeout=600)
    assert (done.returncode != 0) == fails, done.stderr[-4000:]
    return done.stdout + done.stderr


def train(dataset: Path, output: Path, *options: str) -> Path:
    lerobot("train", f"--dataset.root={dataset}", f"--output_dir={output}", *DATASET, *COMMON, *options)
    return output / "checkpoints" / "last" / "pretrained_model"


def evaluate(checkpoint: Path, output: Path, *options: str) -> dict:
    lerobot(
        "eval",
        f"--policy.path={checkpoint}",
        "--env.type=conveyor",
        "--policy.device=cpu",
        f"--output_dir={output}",
        "--eval.n_episodes=2",
        "--eval.batch_size=2",
        *options,
    )
    return json.loads((output / "eval_info.json").read_text())


@pytest.mark.sim
def test_lerobot_eval_drives_the_conveyor(native, tmp_path):
    options = ["--env.max_steps=8", "--eval.use_async_envs=false"]
    info = evaluate(native, tmp_path / "eval", *options)
    assert info["overall"]["n_episodes"] == 2
    assert all(Path(video).stat().st_size for video in info["overall"]["video_paths"])


@pytest.mark.slow
@pytest.mark.sim
def test_lerobot_eval_with_its_defaults(native, tmp_path):
    """Environments in processes of their own, more episodes than fit one batch."""
    info = evaluate(native, tmp_path / "eval", "--eval.n_episodes=3")
    assert info["overall"]["n_episodes"] == 3


@pytest.mark.slow
def test_a_mistake_ends_with_our_message(dataset, tmp_path):
    said = lerobot(
        "train",
        "--policy.type=vla_mot",
        "--policy.action_mode=delta",
        f"--dataset.root={dataset}",
        f"--output_dir={tmp_path / 'run'}",
        *DATASET,
        *COMMON,
        fails=True,
    )
    assert "statistics of absolute actions only" in said
