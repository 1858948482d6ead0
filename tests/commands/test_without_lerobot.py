"""What a checkpoint is asked needs the model's own dependencies alone: no lerobot, no pyarrow, no video library."""

import subprocess
import sys

from tests.test_readme import ABSENT

BLOCKED = f"import sys; sys.modules |= dict.fromkeys({ABSENT!r}); "
RUN = "from vla_mot.commands.main import main; sys.exit(main(sys.argv[1:]))"
RUN_ALL = """
from vla_mot.commands.main import main
for words in (["info"], ["verify"], ["convert", "output=copy"]):
    assert main([*words, sys.argv[1]]) == 0, words
"""


def test_it_runs(repository, tmp_path):
    """One process: importing torch takes longer than all three."""
    checkpoint = f"checkpoint={repository / 'tests/goldens/nano'}"
    done = subprocess.run(
        [sys.executable, "-c", BLOCKED + RUN_ALL, checkpoint], cwd=tmp_path, capture_output=True, text=True
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "copy").is_dir()


def test_what_needs_more_says_what_to_install(tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", BLOCKED + RUN, "data", "mixture", f"data.root={tmp_path}"],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2
    assert "pip install 'vla-mot[lerobot]'" in done.stderr
