"""tools/latency_table.py on cells that were driven before."""

import runpy

import pytest

from tests.conftest import REPOSITORY
from tests.evaluate.found import arm
from vla_mot.evaluate.results import Evaluation

TOOL = runpy.run_path(str(REPOSITORY / "tools" / "latency_table.py"))


def test_what_is_there_is_printed_and_not_driven_again(tmp_path, capsys):
    cells = [(row, delay) for row in range(len(TOOL["METHODS"])) for delay in TOOL["DELAYS_MS"]]
    for number, (row, delay) in enumerate(cells):
        Evaluation((arm("policy", number, 20),)).save(tmp_path / f"{row}-{delay}ms")
    TOOL["main"](["nowhere", str(tmp_path)])
    lines = [
        [cell.strip() for cell in line.split("|")[1:-1]] for line in capsys.readouterr().out.splitlines()
    ]
    assert lines[0] == ["", "0 ms", "100 ms", "200 ms", "400 ms"]
    assert [line[0] for line in lines[2:]] == list(TOOL["METHODS"])
    assert lines[2][1] == "0 % (0–16)" and lines[4][3] == "50 % (30–70)"


def test_a_cell_that_cannot_be_driven_ends_it(tmp_path, capsys):
    with pytest.raises(SystemExit) as ended:
        TOOL["main"]([str(tmp_path / "nowhere"), str(tmp_path / "table")])
    assert ended.value.code == 2
    assert "nowhere" in capsys.readouterr().err
