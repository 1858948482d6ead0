"""What the README promises in code does what it says."""

import re
import subprocess
import sys

from tests.infer.tiny_policy import tiny_policy

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
    assert len([line for line in example.splitlines() if line]) == 5
    tiny_policy().save_pretrained(tmp_path / "runs/a/checkpoints/last/pretrained_model")
    done = subprocess.run(
        [sys.executable, "-c", BEFORE + example + AFTER], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
