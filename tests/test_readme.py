"""What the README promises in code does what it says."""

import re
import subprocess
import sys

from tests.infer.tiny_policy import tiny_policy
from vla_mot.commands.main import main

# What a model, its checkpoints and its inference do without.
ABSENT = (
    "lerobot",
    "datasets",
    "gymnasium",
    "pygame",
    "pymunk",
    "av",
    "pyarrow",
    "matplotlib",
    "tensorboard",
)
BEFORE = f"""
import sys
sys.modules |= dict.fromkeys({ABSENT!r})  # importing one of them is an ImportError
import torch
images = {{f"observation.images.{{name}}": torch.zeros(3, 32, 32, dtype=torch.uint8) for name in ("head", "gripper")}}
state = torch.zeros(4)
"""
AFTER = """
assert action.shape == (3,) and action.isfinite().all()
"""


def test_the_python_example_acts_without_lerobot(repository, tmp_path):
    (example,) = re.findall(r"```python\n(.*?)```", (repository / "README.md").read_text(), flags=re.DOTALL)
    assert len([line for line in example.splitlines() if line]) == 4
    tiny_policy().save_pretrained(tmp_path / "runs/a/checkpoints/last/pretrained_model")
    done = subprocess.run(
        [sys.executable, "-c", BEFORE + example + AFTER], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


QUICK = (
    "train.steps=4",
    "train.batch_size=8",
    "train.warmup_steps=1",
    "train.val_every=4",
    "train.save_every=4",
    "train.val_samples=8",
)


def test_the_chain_from_many_robots_to_one_runs(repository, tmp_path, monkeypatch):
    """Word for word, but for sizes; the page on pretraining has the same lines."""
    pattern = r"## From many robots to one\n\n```\n(.*?)```"
    (chain,) = re.findall(pattern, (repository / "README.md").read_text(), flags=re.DOTALL)
    lines = [line.split() for line in chain.splitlines()]
    assert [line[1] for line in lines] == ["data", "data", "data", "pretrain", "posttrain"]
    monkeypatch.chdir(tmp_path)
    for line in lines:
        words = [word for word in line[1:] if not word.startswith(("episodes=", "train.steps="))]
        more = QUICK if words[0] != "data" else ("episodes=3", "env.image_size=48")
        assert main([*words, *more]) == 0, line
    assert (tmp_path / "runs/b/checkpoints/000004/pretrained_model/model.safetensors").is_file()
