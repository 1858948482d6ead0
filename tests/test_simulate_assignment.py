"""tools/simulate_assignment.py, small."""

import subprocess
import sys

from tests.conftest import REPOSITORY

TOOL = REPOSITORY / "tools" / "simulate_assignment.py"


def run(*words: str) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, TOOL, *words], capture_output=True, text=True, timeout=120)


def test_it_prints_both_rules_at_every_number_of_workers():
    done = run("workers=2,16", "datasets=40", "shards=16", "dataset_bytes=0", "frame_bytes=1048576")
    assert done.returncode == 0, done.stderr
    lines = [[cell.strip() for cell in line.strip("|").split("|")] for line in done.stdout.splitlines()]
    table = [dict(zip(lines[4], line, strict=True)) for line in lines if line[0] in ("exact", "lpt")]
    assert [(row["rule"], row["workers"]) for row in table] == [
        ("exact", "2"),
        ("exact", "16"),
        ("lpt", "2"),
        ("lpt", "16"),
    ]
    assert "692,000,000 frames in 40 datasets" in done.stdout
    for row in table:
        mean, most = map(float, row["MiB held, mean / most"].split("/"))
        assert mean >= 692e6 / int(row["workers"]) - 1, "every frame is held by someone, one MiB each"
        assert most / (692e6 / int(row["workers"])) - float(row["most frames ÷ fair share"]) < 1e-3
        assert (float(row["error, worst dataset"].split()[0]) < 1e-12) == (row["rule"] == "exact")
        assert int(row["pieces"]) >= 40


def test_an_argument_that_it_does_not_know_is_named():
    done = run("worker=2")
    assert done.returncode != 0
    assert "Did you mean 'workers'?" in done.stderr and "Traceback" not in done.stderr
