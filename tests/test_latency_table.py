"""tools/latency_table.py on cells that were driven before."""

import runpy
from pathlib import Path

import pytest

from tests.conftest import REPOSITORY
from tests.evaluate.found import arm
from vla_mot.errors import CheckpointError, ConfigError
from vla_mot.evaluate.results import Evaluation

TOOL = runpy.run_path(str(REPOSITORY / "tools" / "latency_table.py"))


@pytest.fixture
def policy(tmp_path) -> Path:
    """What is looked at of a policy whose cells are all driven."""
    folder = tmp_path / "policy"
    folder.mkdir()
    for name in ("config.json", "manifest.json"):
        (folder / name).write_text("{}")
    return folder


def test_what_is_there_is_printed_and_not_driven_again(policy, tmp_path, capsys):
    cells = [(row, delay) for row in range(len(TOOL["METHODS"])) for delay in TOOL["DELAYS_MS"]]
    for number, (row, delay) in enumerate(cells):
        Evaluation((arm("policy", number, 20),)).save(tmp_path / "table" / f"{row}-{delay}ms")
    words = [str(policy), str(tmp_path / "table"), "episodes=20"]
    TOOL["main"](words)
    lines = [
        [cell.strip() for cell in line.split("|")[1:-1]] for line in capsys.readouterr().out.splitlines()
    ]
    assert lines[0] == ["", "0 ms", "100 ms", "200 ms", "400 ms"]
    assert [line[0] for line in lines[2:]] == list(TOOL["METHODS"])
    assert lines[2][1] == "0 % (0–16)" and lines[4][3] == "50 % (30–70)"
    with pytest.raises(ConfigError, match=r"words was \['episodes=20'\], is \['episodes=40'\]"):
        TOOL["main"]([*words[:2], "episodes=40"])
    (policy / "manifest.json").write_text("{ }")
    with pytest.raises(ConfigError, match="policy hash was"):
        TOOL["main"](words)


def test_a_cell_that_cannot_be_driven_ends_it(policy, tmp_path, capsys):
    with pytest.raises(SystemExit) as ended:
        TOOL["main"]([str(policy), str(tmp_path / "table")])
    assert ended.value.code == 2
    assert str(policy) in capsys.readouterr().err
    with pytest.raises(CheckpointError, match="nowhere does not exist"):
        TOOL["main"]([str(tmp_path / "nowhere"), str(tmp_path / "table")])


def test_another_demo_or_other_options_are_not_mixed_into_a_curve(policy, tmp_path):
    """tools/demo_curve.py."""
    tool = runpy.run_path(str(REPOSITORY / "tools" / "demo_curve.py"))
    output = tmp_path / "curve"
    with pytest.raises(CheckpointError, match="has no config"):  # a policy is no whole demo
        tool["main"]([str(policy), str(output), "episodes=20"])
    for words, message in (
        (["episodes=40"], "episodes was 20, is 40"),
        (["factor=2"], "factor was 10, is 2"),
    ):
        with pytest.raises(ConfigError, match=message):
            tool["main"]([str(policy), str(output), *words])
