"""Every script in benchmarks/ runs and names what it ran on (a new file inherits this test), and what training is
compared with computes the same."""

import subprocess
import sys
from dataclasses import replace
from typing import Any

import pytest

from tests.composed import composed
from tests.conftest import REPOSITORY
from tests.model.tiny import tiny_batch, tiny_model
from vla_mot.backbones.base import read_options
from vla_mot.commands.training_settings import training_config
from vla_mot.errors import ConfigError
from vla_mot.foresight.cosmos import CosmosConfig
from vla_mot.options import section
from vla_mot.train.config import ParallelConfig, TrainConfig
from vla_mot.train.flops import cost_of

FOLDER = REPOSITORY / "benchmarks"
SCRIPTS = sorted(path.name for path in FOLDER.glob("*.py") if path.name != "common.py")
SMALL = {
    "action_draws.py": ("draws=2", "batch=4", "seconds=0.4", "turn=0.1", "episodes=4"),
    "training.py": ("size=tiny", "variants=plain,ours", "memory=2"),
    "training_gpu.py": ("device=cpu", "size=tiny", "batches=1,2", "variants=plain+bf16,ours+full+bf16"),
}


@pytest.mark.slow
@pytest.mark.parametrize("script", SCRIPTS)
def test_it_prints_figures_with_their_machine(script: str) -> None:
    command = [sys.executable, FOLDER / script, "repeats=1", *SMALL.get(script, ())]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("commit ")
    assert len(done.stdout.splitlines()) > 3


@pytest.mark.slow
@pytest.mark.parametrize("script", SCRIPTS)
def test_an_argument_that_it_does_not_know_is_named(script: str) -> None:
    done = subprocess.run([sys.executable, FOLDER / script, "repeat=1"], capture_output=True, text=True)
    assert done.returncode != 0
    assert "Did you mean 'repeats'?" in done.stderr


ABSENT = ("lerobot", "datasets", "pyarrow", "av", "gymnasium", "hydra", "omegaconf", "diffusers")
WITHOUT = f"""
import sys
sys.modules |= dict.fromkeys({ABSENT!r})  # importing one of them is an ImportError
from baseline.trial import Setup
from training_gpu import examine
assert examine(Setup("plain+bf16", "tiny", "cpu", (1,)))["flops"] > 0
"""


@pytest.mark.slow
def test_the_script_for_gpus_runs_where_torch_and_transformers_are_but_little_else() -> None:
    done = subprocess.run([sys.executable, "-c", WITHOUT], cwd=FOLDER, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "lean baseline and ours differ by: loss" in done.stdout


# ---- the baseline ---------------------------------------------------------------------------------------------


@pytest.fixture(autouse=True)
def _as_a_script(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(FOLDER))


@pytest.mark.parametrize("options", [{}, {"lean": True}, {"recompute": True}])
def test_the_baseline_computes_what_ours_computes(options: dict[str, bool]) -> None:
    from baseline.equal import require_equal
    from baseline.plain import PlainModel

    model = tiny_model().train()
    found = require_equal(model, PlainModel(model, **options), tiny_batch())
    assert found.loss < 1e-5 and found.gradient < 1e-5


@pytest.mark.parametrize("change", ["scale", "norm", "mask", "rotation"])
def test_a_baseline_that_computes_something_else_is_noticed(change: str, monkeypatch) -> None:
    from baseline.equal import require_equal
    from baseline.plain import PlainModel

    model = tiny_model().train()
    plain: Any = PlainModel(model)
    if change == "scale":
        plain.stacks["understanding"][1].self_attn.scaling *= 1.01
    elif change == "norm":
        plain.stacks["action"][0].input_layernorm.variance_epsilon = 0.05
    elif change == "rotation":
        plain.rotary.inv_freq *= 1.01
    else:
        tables = plain._tables
        monkeypatch.setattr(plain, "_tables", lambda *told: (*tables(*told)[:2], 0.0 * tables(*told)[2]))
    with pytest.raises(AssertionError, match="computes something else"):
        require_equal(model, plain, tiny_batch())


def test_a_model_that_the_baseline_does_not_know_is_refused() -> None:
    from baseline.plain import PlainModel

    with pytest.raises(ConfigError, match="qwen3_vl"):
        PlainModel(tiny_model(family="internvl3"))
    with pytest.raises(ConfigError, match="mask_padding"):
        PlainModel(tiny_model(mask_padding=False))


def test_the_3b_size_is_the_preset_but_for_the_vocabulary_and_the_dtype_of_the_tokenizer() -> None:
    from baseline.plain import PlainModel
    from baseline.sizes import SIZES, build

    preset = training_config(composed("posttrain", "model=a1_3b", "data.root=x", "output=x")).model
    made = SIZES["3b"]
    assert replace(made, backbone=preset.backbone, foresight=preset.foresight) == preset
    told, meant = read_options(made.backbone)[0], read_options(preset.backbone)[0]
    special = ("tokenizer", "pad_token_id", "vision_start_token_id", "vision_end_token_id")
    assert replace(told, **{name: getattr(meant, name) for name in special}) == meant
    tokenizers = [
        section(CosmosConfig, "foresight", {key: value for key, value in config.items() if key != "type"})
        for config in (made.foresight, preset.foresight)
    ]
    assert replace(tokenizers[0], dtype=tokenizers[1].dtype) == tokenizers[1]
    model = build("3b", "meta")
    tokens = {"understanding": 246, "generation": 96, "state": 1, "action": 50}
    assert cost_of(made, TrainConfig()).tokens == tokens
    assert {id(p) for p in PlainModel(model).parameters()} <= {id(p) for p in model.parameters()}


def test_a_way_of_training_is_read_from_its_name() -> None:
    from baseline.variants import Variant

    assert Variant.of("ours+full+compiled+bf16").parallel == ParallelConfig(
        precision="bf16", compile=True, recompute="full"
    )
    with pytest.raises(ConfigError, match="compiled"):
        Variant.of("plain+compiled")
    with pytest.raises(ConfigError, match="lean"):
        Variant.of("leen")
