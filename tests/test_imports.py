"""Imports point one way, and `import vla_mot` stays quick.

    errors, options, conf_dir, version, batch, keyed, groups <- nn, flow, robots <- backbones, foresight <- model <- hub
                           <- infer <- evaluate <- train <- commands   (left is imported by right)

Beside that line stand `data` (reads batch and robots), `policy` (up to infer) and `envs` (nothing of ours).
Imports inside functions count like any other.
"""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

SOURCE = Path(__file__).resolve().parents[1] / "src" / "vla_mot"

BOTTOM = {"errors", "version", "batch", "keyed", "options", "conf_dir", "groups"}
LEVELS = [
    BOTTOM,
    {"nn", "flow", "robots"},
    {"backbones", "foresight"},
    {"model"},
    {"hub"},
    {"infer"},
    {"evaluate"},
    {"train"},
    {"commands"},
]
UP_TO_INFER = set().union(*LEVELS[:6])
MAY_IMPORT = {part: set().union(*LEVELS[:level]) for level, parts in enumerate(LEVELS) for part in parts}
MAY_IMPORT |= {
    "vla_mot": {"version", "infer"},  # the package's own __init__
    "options": {"errors"},
    "conf_dir": {"errors"},
    "data": BOTTOM | {"robots"},
    "policy": UP_TO_INFER,
    "envs": set(),
}
MAY_IMPORT["evaluate"] |= {"envs"}
MAY_IMPORT["train"] |= {"data", "envs"}
MAY_IMPORT["commands"] |= {"data", "envs", "policy"}
MAY_IMPORT_LEROBOT = {"data", "policy", "evaluate", "commands"}


def part_of(file: Path, source: Path) -> str:
    """The folder or module directly under `vla_mot` that a file belongs to."""
    first = file.relative_to(source).parts[0].removesuffix(".py")
    return "vla_mot" if first == "__init__" else first


def imported(node: ast.AST, package: list[str]) -> Iterator[list[str]]:
    """The names that a statement imports, split at dots; relative ones start from `package`."""
    match node:
        case ast.Import(names=names):
            yield from (alias.name.split(".") for alias in names)
        case ast.ImportFrom(module=module, names=names, level=level):
            base = package[: len(package) - level + 1] if level else []
            base = base + (module.split(".") if module else [])
            yield from ([*base, alias.name] for alias in names)
        case ast.Call(func=ast.Attribute(attr="import_module") | ast.Name(id="import_module" | "__import__")):
            if node.args and isinstance(node.args[0], ast.Constant):
                yield str(node.args[0].value).split(".")


def wrong_edges(source: Path) -> list[str]:
    """Every import under `source` that the layering forbids, as `file:line: a -> b`."""
    wrong = []
    for file in sorted(source.rglob("*.py")):
        part = part_of(file, source)
        package = ["vla_mot", *file.relative_to(source).parent.parts]
        for node in ast.walk(ast.parse(file.read_text(), filename=str(file))):
            for name in imported(node, package):
                if target := forbidden(part, name):
                    wrong.append(f"{file.relative_to(source)}:{node.lineno}: {part} -> {target}")
    return wrong


def forbidden(part: str, name: list[str]) -> str | None:
    """What `part` reaches for and may not, or None when the import is fine."""
    if part not in MAY_IMPORT:
        return f"nothing: {part} has no place in the layering yet, give it one in {Path(__file__).name}"
    if name[0] == "lerobot":
        return None if part in MAY_IMPORT_LEROBOT else "lerobot"
    if name[0] != "vla_mot":
        return None
    target = name[1] if len(name) > 1 and name[1] in MAY_IMPORT else "vla_mot"
    return None if target == part or target in MAY_IMPORT[part] else target


def test_no_import_points_upwards():
    assert SOURCE.is_dir()
    assert wrong_edges(SOURCE) == []


@pytest.mark.parametrize(
    ("file", "code", "edge"),
    [
        ("nn/a.py", "from vla_mot.model import x", "nn -> model"),
        ("nn/a.py", "import vla_mot.flow.matching", "nn -> flow"),
        ("nn/a.py", "from vla_mot import flow", "nn -> flow"),
        ("nn/deep/a.py", "from ...model import x", "nn -> model"),
        ("nn/deep/a.py", "from ... import model", "nn -> model"),
        ("batch.py", "from . import errors", "batch -> errors"),
        ("model/a.py", "def f():\n    from vla_mot.hub import x", "model -> hub"),
        ("model/a.py", "import importlib\nimportlib.import_module('vla_mot.hub')", "model -> hub"),
        ("model/a.py", "def f():\n    import lerobot.datasets", "model -> lerobot"),
        ("train/a.py", "from lerobot import x", "train -> lerobot"),
        ("data/a.py", "from vla_mot.nn import x", "data -> nn"),
        ("evaluate/a.py", "from vla_mot.data import x", "evaluate -> data"),
        ("policy/a.py", "from vla_mot.evaluate import x", "policy -> evaluate"),
        ("envs/a.py", "from vla_mot.errors import x", "envs -> errors"),
        ("foresight/a.py", "from vla_mot.backbones import x", "foresight -> backbones"),
        ("errors.py", "from vla_mot import __version__", "errors -> vla_mot"),
        ("extra/a.py", "import torch", "extra -> nothing"),
    ],
)
def test_a_forbidden_import_is_found(tmp_path, file, code, edge):
    target = tmp_path / file
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(code)
    assert [edge in found for found in wrong_edges(tmp_path)] == [True]


@pytest.mark.parametrize(
    ("file", "code"),
    [
        ("nn/a.py", "import torch\nfrom vla_mot.batch import x\nfrom .b import y\nfrom . import c"),
        ("commands/a.py", "import lerobot, vla_mot.train, vla_mot.data, vla_mot.envs"),
        ("data/a.py", "import lerobot\nfrom vla_mot.robots import x\nfrom vla_mot.errors import y"),
        ("policy/a.py", "import lerobot\nfrom vla_mot.infer.policy import Policy"),
        ("__init__.py", "def f():\n    from vla_mot.infer.policy import Policy"),
    ],
)
def test_an_allowed_import_passes(tmp_path, file, code):
    target = tmp_path / file
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(code)
    assert wrong_edges(tmp_path) == []


def in_fresh_python(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_importing_vla_mot_loads_nothing_heavy():
    heavy = "{'torch', 'numpy', 'transformers', 'diffusers', 'lerobot', 'hydra'}"
    code = f"import sys, vla_mot; vla_mot.__version__; print(sorted({heavy} & set(sys.modules)))"
    assert in_fresh_python(code) == "[]"


def test_policy_is_reached_from_the_top():
    code = "import vla_mot; from vla_mot.infer.policy import Policy; print(vla_mot.Policy is Policy)"
    assert in_fresh_python(code) == "True"
    assert "Policy" in in_fresh_python("import vla_mot; print(dir(vla_mot))")


def test_an_unknown_name_is_an_attribute_error():
    import vla_mot

    with pytest.raises(AttributeError, match="no attribute 'Polcy'"):
        _ = vla_mot.Polcy
