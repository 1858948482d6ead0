"""Every script in benchmarks/ runs and names what it ran on. A new file inherits this test."""

import subprocess
import sys

import pytest

from tests.conftest import REPOSITORY

FOLDER = REPOSITORY / "benchmarks"
SCRIPTS = sorted(path.name for path in FOLDER.glob("*.py") if path.name != "common.py")


@pytest.mark.slow
@pytest.mark.parametrize("script", SCRIPTS)
def test_it_prints_figures_with_their_machine(script):
    done = subprocess.run([sys.executable, FOLDER / script, "repeats=1"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("commit ")
    assert len(done.stdout.splitlines()) > 3


@pytest.mark.slow
@pytest.mark.parametrize("script", SCRIPTS)
def test_an_argument_that_it_does_not_know_is_named(script):
    done = subprocess.run([sys.executable, FOLDER / script, "repeat=1"], capture_output=True, text=True)
    assert done.returncode != 0
    assert "Did you mean 'repeats'?" in done.stderr
