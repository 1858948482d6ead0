"""What a user installs: the wheel and the editable install both carry everything and find `conf/`."""

import re
import subprocess
import sys
import tarfile
import zipfile
from email.parser import HeaderParser
from importlib.metadata import distributions
from pathlib import Path

import pytest

from vla_mot import conf_dir as conf_dir_module
from vla_mot.conf_dir import conf_dir
from vla_mot.errors import ConfigError
from vla_mot.version import __version__

UV = [sys.executable, "-m", "uv", "--quiet", "--offline"]


def run(command: list[str], cwd: Path) -> str:
    done = subprocess.run(list(map(str, command)), cwd=cwd, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def conf_seen_from(site: Path, elsewhere: Path) -> Path:
    """Ask for `conf_dir()` in a Python that sees only what was installed into `site`."""
    code = (
        f"import site; site.addsitedir({str(site)!r}); "
        "from vla_mot.conf_dir import conf_dir; print(conf_dir())"
    )
    return Path(run([sys.executable, "-I", "-S", "-c", code], elsewhere))


@pytest.fixture(scope="module")
def wheel(repository, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    run([*UV, "build", "--wheel", "--no-build-isolation", "--out-dir", folder, repository], repository)
    (built,) = folder.glob("*.whl")
    return built


def test_wheel_is_complete(wheel, repository):
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    files = [file for file in (repository / "conf").rglob("*") if file.is_file()]
    conf = {f"vla_mot/{file.relative_to(repository)}" for file in files}
    source = repository / "src"
    modules = {str(file.relative_to(source)) for file in (source / "vla_mot").rglob("*.py")}
    assert conf, "conf/ holds no configuration"
    assert conf | modules | {"vla_mot/py.typed"} <= names
    assert f"vla_mot-{__version__}.dist-info/licenses/LICENSE" in names
    ours = ("vla_mot/", f"vla_mot-{__version__}.dist-info/")
    assert not [name for name in names if not name.startswith(ours)]


def test_the_source_archive_holds_what_the_readme_speaks_of(repository, tmp_path):
    run([*UV, "build", "--sdist", "--no-build-isolation", "--out-dir", tmp_path, repository], repository)
    with tarfile.open(next(tmp_path.glob("*.tar.gz"))) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    kept = run(["git", "ls-files"], repository).splitlines()
    left_out = {name for name in kept if name not in names and not name.startswith(".")}
    assert left_out == set()


def test_wheel_metadata(wheel):
    with zipfile.ZipFile(wheel) as archive:
        metadata = HeaderParser().parsestr(archive.read(f"vla_mot-{__version__}.dist-info/METADATA").decode())
        scripts = archive.read(f"vla_mot-{__version__}.dist-info/entry_points.txt").decode()
    assert metadata["License-Expression"] == "Apache-2.0"
    assert metadata["Requires-Python"] == ">=3.12"
    always = [need for need in metadata.get_all("Requires-Dist") if "extra ==" not in need]
    assert any(need.startswith("torch>=") for need in always)
    assert not any("lerobot" in need for need in always)
    assert "vla-mot = vla_mot.commands.main:main" in scripts


def test_conf_is_found_from_a_wheel(wheel, tmp_path):
    site = tmp_path / "site"
    run([*UV, "pip", "install", "--no-deps", "--target", site, wheel], tmp_path)
    assert conf_seen_from(site, tmp_path) == site / "vla_mot" / "conf"


def test_conf_is_found_from_an_editable_install(repository, tmp_path):
    site = tmp_path / "site"
    install = [*UV, "pip", "install", "--no-deps", "--no-build-isolation", "--target", site, "-e", repository]
    run(install, tmp_path)
    assert conf_seen_from(site, tmp_path) == repository / "conf"


def test_a_missing_conf_is_said_plainly(monkeypatch, tmp_path):
    assert conf_dir().is_dir()
    monkeypatch.setattr(conf_dir_module, "_PACKAGE", tmp_path / "src" / "vla_mot")
    with pytest.raises(ConfigError, match="neither exists"):
        conf_dir()


def test_lerobot_can_discover_the_plugins_by_their_names(repository):
    """LeRobot matches the distribution's name as written and imports the module of exactly that name."""
    folders = sorted((repository / "packages").glob("lerobot_*"))
    assert folders
    installed = {distribution.metadata["Name"] for distribution in distributions()}
    for folder in folders:
        assert folder.name in installed
        assert list(folder.rglob(f"{folder.name}/__init__.py"))


def test_lock_holds_hashes_and_no_addresses(repository):
    text = (repository / "requirements.lock").read_text()
    assert "://" not in text
    requirements = re.findall(r"^[^\s#].*(?:\n +--hash=.*)*", text, re.MULTILINE)
    assert len(requirements) > 50
    loose = [need.split()[0] for need in requirements if "==" not in need or "--hash=sha256:" not in need]
    assert loose == []
