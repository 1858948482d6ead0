"""An environment of its own into which this project came as wheels alone.

The locked packages of the environment that runs the tests are there too, by links, so that nothing is fetched or
copied; the project's editable installs are not. Their console scripts are those of the locked packages, with the
new environment's Python.
"""

import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

UV = [sys.executable, "-m", "uv", "--quiet", "--offline"]


class CleanEnvironment:
    """folder: of the environment. site: its site-packages. wheels: what was installed from."""

    def __init__(self, folder: Path, repository: Path) -> None:
        self.folder = folder
        self.wheels = folder.with_name(f"{folder.name}-wheels")
        run([*UV, "venv", "--python", sys.executable, folder], folder.parent)
        (self.site,) = folder.glob("lib/python3*/site-packages")
        projects = [
            repository,
            *(path.parent for path in sorted(repository.glob("packages/*/pyproject.toml"))),
        ]
        projects.append(repository / "tests" / "policy" / "robot")
        for project in projects:
            run(
                [*UV, "build", "--wheel", "--no-build-isolation", "--out-dir", self.wheels, project],
                folder.parent,
            )
        self._link({wheel.name.split("-")[0] for wheel in self.wheels.glob("*.whl")})

    def _link(self, ours: set[str]) -> None:
        for entry in Path(sysconfig.get_path("purelib")).iterdir():
            name = entry.name.split("-")[0]
            there = self.site / entry.name
            if name in ours or name.startswith("_editable_impl_") or there.exists():
                continue
            if entry.suffix == ".dist-info":  # uv takes no link for one
                shutil.copytree(entry, there)
            else:
                there.symlink_to(entry)
        for script in Path(sys.executable).parent.iterdir():
            if script.name.startswith("lerobot-") or script.name == "torchrun":
                there = self.program(script.name)
                shutil.copy(script, there)
                first, _, rest = script.read_text().partition("\n")
                assert first.startswith("#!") and "python" in first, first
                there.write_text(f"#!{self.program('python')}\n{rest}")

    def install(self, *wanted: str) -> None:
        """Install from the wheels, dependencies included; what is not there is an error."""
        found = ["--no-index", "--find-links", self.wheels]
        run([*UV, "pip", "install", "--python", self.program("python"), *found, *wanted], self.folder)

    def program(self, name: str) -> Path:
        return self.folder / "bin" / name


def run(command: list, folder: Path, environment: dict[str, str] | None = None, fails: bool = False) -> str:
    """Run a command to its end from another folder than the checkout; returns what it said."""
    words = [str(word) for word in command]
    done = subprocess.run(words, cwd=folder, env=environment, capture_output=True, text=True, timeout=600)
    assert (done.returncode != 0) == fails, done.stderr[-6000:]
    return done.stdout + done.stderr
