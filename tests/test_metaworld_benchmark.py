"""tools/metaworld_benchmark.py in miniature: all stages but `lerobot-eval`, whose 500 steps an episode take minutes."""

import json
import runpy

import pytest

from tests.conftest import REPOSITORY
from vla_mot.errors import ConfigError
from vla_mot.evaluate.metaworld import graphics

pytestmark = [pytest.mark.sim, pytest.mark.slow, pytest.mark.multiprocess]
pytest.importorskip("metaworld", reason="vla-mot[metaworld] is not installed")

TASK = "button-press-topdown-v3"
SMALL = (
    "--ours=train.batch_size=2",
    "--ours=train.val_samples=2",
    "--ours=train.val_open_loop=1",
    "--ours=train.val_pictures=0",
    "--ours=train.action_draws=1",
    "--ours=train.log.utilisation=false",
    "--act=--policy.dim_model=32",
    "--act=--policy.dim_feedforward=32",
    "--act=--policy.n_heads=2",
    "--act=--batch_size=1",
    "--act=--policy.n_encoder_layers=1",
)


@pytest.fixture(scope="module", autouse=True)
def _drawable():
    try:
        graphics.choose()
    except ConfigError as error:
        pytest.skip(str(error))


def test_it_measures_what_fits_trains_both_and_goes_on_where_it_was(tmp_path, capsys, monkeypatch):
    tool = runpy.run_path(str(REPOSITORY / "tools" / "metaworld_benchmark.py"))
    said = f"{tmp_path / 'out'} --tasks {TASK} --demonstrations 2 --minutes 0.02 --rollouts 2 --lerobot-rollouts 0"
    words = [*said.split(), *["--render", "fast", "--max-steps", "12", "--baselines", "act_small"], *SMALL]
    tool["main"](words)
    first = [line for line in capsys.readouterr().out.splitlines() if line.startswith("|")]
    assert [line.split("|")[1].strip() for line in first[2:]] == [
        "scripted expert",
        "vla_mot",
        "lerobot's ACT, made small, 10 steps of a chunk executed",
    ]
    assert all("/2, " in line for line in first[2:])
    for name in ("ours", "act_small"):
        assert json.loads((tmp_path / "out" / f"{name}_pace.json").read_text())["seconds_per_step"] > 0
        assert json.loads((tmp_path / "out" / f"{name}.json").read_text())["finished"]
    monkeypatch.setattr(tool["subprocess"], "Popen", None)  # nothing is trained or driven again
    tool["main"](words)
    assert [line for line in capsys.readouterr().out.splitlines() if line.startswith("|")] == first


def test_a_cell():
    tool = runpy.run_path(str(REPOSITORY / "tools" / "metaworld_benchmark.py"))
    assert tool["cell"](38, 50) == "38/50, 76 % (63–86)"
