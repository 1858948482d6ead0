"""`make setup`: a second one installs nothing, a changed lock installs again, and what is missing is said plainly.

The script runs in a folder of its own. `uv` is the real one for finding Python and making the environment; what it
would download is only written down.
"""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

PROGRAMS = ("bash", "awk", "cat", "cut", "dirname", "grep", "mktemp", "rm", "sed", "sha256sum", "touch")
UV = Path(sys.executable).with_name("uv")
RECORDER = """#!/usr/bin/env bash
echo "$*" >>"$UV_CALLS"
[ "$1" = pip ] && exit 0
exec {uv} "$@"
"""


@pytest.fixture
def project(tmp_path, repository) -> Path:
    """What the script reads, and nothing else."""
    root = tmp_path / "project"
    for name in ("tools/setup.sh", "requirements.lock", "pyproject.toml"):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(repository / name, root / name)
    for file in repository.glob("packages/*/pyproject.toml"):
        copy = root / file.relative_to(repository)
        copy.parent.mkdir(parents=True)
        shutil.copy(file, copy)
    return root


@pytest.fixture
def tools(tmp_path) -> Path:
    """A folder for the PATH with only the programs that the script needs, and a `uv` that writes its calls down."""
    folder = tmp_path / "tools"
    folder.mkdir()
    for name in PROGRAMS:
        found = shutil.which(name)
        assert found, f"this machine has no {name}"
        (folder / name).symlink_to(found)
    (folder / "uv").write_text(RECORDER.format(uv=UV))
    (folder / "uv").chmod(0o755)
    return folder


def setup(project: Path, tools: Path, **environment: str) -> tuple[int, str, list[str]]:
    """(exit code, what was said, calls of uv) of one run."""
    calls = project.parent / "calls"
    calls.write_text("")
    environment = {
        "PATH": str(tools), "HOME": str(project.parent), "UV_CALLS": str(calls),
        "UV_OFFLINE": "1", "UV_PYTHON_INSTALL_DIR": str(project.parent / "no-pythons"),
    } | environment  # fmt: skip
    script = [shutil.which("bash"), project / "tools" / "setup.sh"]
    done = subprocess.run(script, env=environment, capture_output=True, text=True, cwd=project.parent)
    return done.returncode, done.stdout + done.stderr, calls.read_text().splitlines()


def give_python(tools: Path) -> None:
    (tools / "python3.12").symlink_to(os.path.realpath(sys.executable))


def test_the_second_run_installs_nothing(project, tools):
    give_python(tools)
    code, said, calls = setup(project, tools)
    assert code == 0, said
    assert [call.split()[:2] for call in calls if call.startswith("pip")] == [
        ["pip", "sync"],
        ["pip", "install"],
    ]
    assert "ready: Python 3." in said
    assert setup(project, tools) == (0, "", [])


@pytest.mark.parametrize(
    "file", ["requirements.lock", "pyproject.toml", "packages/lerobot_env_conveyor/pyproject.toml"]
)
def test_what_decides_the_environment_installs_again(project, tools, file):
    give_python(tools)
    setup(project, tools)
    with (project / file).open("a") as text:
        text.write("\n# changed\n")
    code, _, calls = setup(project, tools)
    assert code == 0
    assert any(call.startswith("pip sync") for call in calls)
    assert not any(call.startswith("venv") for call in calls), "the environment itself was fine"


def test_an_environment_that_was_moved_is_made_anew(project, tools):
    give_python(tools)
    setup(project, tools)
    moved = project.rename(project.with_name("moved"))
    code, said, calls = setup(moved, tools)
    assert code == 0
    assert "making it anew" in said
    assert any(call.startswith("venv") for call in calls)


def test_a_missing_python_is_said_plainly(project, tools):
    code, said, calls = setup(project, tools)
    assert code == 1
    assert said.endswith(
        "setup: found no Python 3.12 or newer, and could not fetch one. Install Python 3.12 and run again.\n"
    )
    assert not any(call.startswith("pip") for call in calls)
    assert not (project / ".venv" / ".vla-mot-setup").exists()


def test_a_failed_install_is_tried_again(project, tools):
    give_python(tools)
    recorder = (tools / "uv").read_text()
    (tools / "uv").write_text(recorder.replace("= pip ] && exit 0", "= pip ] && exit 2"))
    code, said, _ = setup(project, tools)
    assert code == 1
    assert "could not install requirements.lock" in said
    (tools / "uv").write_text(recorder)
    code, _, calls = setup(project, tools)
    assert code == 0
    assert any(call.startswith("pip sync") for call in calls)
