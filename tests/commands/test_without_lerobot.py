"""What a checkpoint is asked needs the model's own dependencies alone: no lerobot, no pyarrow, no video library."""

import subprocess
import sys

import pytest

from tests.test_readme import ABSENT

BLOCKED = f"import sys; sys.modules |= dict.fromkeys({ABSENT!r}); "
RUN = "from vla_mot.commands.main import main; sys.exit(main(sys.argv[1:]))"


@pytest.mark.parametrize(
    "words", [["info"], ["verify"], ["convert", "output=copy"]], ids=lambda words: words[0]
)
def test_it_runs(words, repository, tmp_path):
    checkpoint = f"checkpoint={repository / 'tests/goldens/nano'}"
    done = subprocess.run(
        [sys.executable, "-c", BLOCKED + RUN, *words, checkpoint], cwd=tmp_path, capture_output=True, text=True
    )  # fmt: skip
    assert done.returncode == 0, done.stderr


def test_what_needs_more_says_what_to_install(tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", BLOCKED + RUN, "data", "mixture", f"data.root={tmp_path}"],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2
    assert "pip install 'vla-mot[lerobot]'" in done.stderr
