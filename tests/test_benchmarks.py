"""Every script in benchmarks/ runs and names what it ran on (a new file inherits this test), and what training is
compared with computes the same."""

import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.composed import composed
from tests.conftest import REPOSITORY
from tests.infer.tiny_policy import frames, states, tiny_policy
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
    "inference.py": ("size=tiny", "warmup=1", "curve_repeats=1", "variants=plain,ours,ours+static"),
    "inference_gpu.py": (
        "device=cpu",
        "size=tiny",
        "warmup=1",
        "curve_repeats=1",
        "variants=plain,ours+static",
    ),
    "training.py": ("size=tiny", "variants=plain,ours", "memory=2"),
    "training_gpu.py": ("device=cpu", "size=tiny", "batches=1,2", "variants=plain+bf16,ours+full+bf16"),
}
CALLS = ("p99 ms", "Hz", "floor of a call")
SAYS = {
    "inference.py": (CALLS, "inference_tiny.png"),
    "inference_gpu.py": (CALLS, "inference_gpu_tiny.png"),
}
"""Of calls and curves, which SMALL leaves as they are: what is printed, and the picture that is drawn."""


@pytest.mark.slow
@pytest.mark.parametrize("script", SCRIPTS)
def test_it_prints_figures_with_their_machine(script: str, tmp_path: Path) -> None:
    command = [sys.executable, FOLDER / script, "repeats=1", *SMALL.get(script, ())]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("commit ")
    assert len(done.stdout.splitlines()) > 3
    told, picture = SAYS.get(script, ((), None))
    assert [words for words in told if words not in done.stdout] == []
    if picture is not None:
        assert (tmp_path / "outputs" / "benchmarks" / picture).read_bytes().startswith(b"\x89PNG")


@pytest.mark.slow
@pytest.mark.parametrize("script", SCRIPTS)
def test_an_argument_that_it_does_not_know_is_named(script: str) -> None:
    done = subprocess.run([sys.executable, FOLDER / script, "repeat=1"], capture_output=True, text=True)
    assert done.returncode != 0
    assert "Did you mean 'repeats'?" in done.stderr


ABSENT = (
    "lerobot",
    "datasets",
    "pyarrow",
    "av",
    "gymnasium",
    "hydra",
    "omegaconf",
    "diffusers",
    "matplotlib",
)
WITHOUT = f"""
import sys
sys.modules |= dict.fromkeys({ABSENT!r})  # importing one of them is an ImportError
from baseline.trial import Setup
from training_gpu import examine
assert examine(Setup("plain+bf16", "tiny", "cpu", (1,)))["flops"] > 0
import inference_gpu
few = "device=cpu size=tiny repeats=1 warmup=1 curve_repeats=1 memory=false variants=plain,ours+static"
sys.argv[1:] = (few + " curve_variants=ours").split()
inference_gpu.main()
"""


@pytest.mark.slow
def test_the_scripts_for_gpus_run_where_torch_and_transformers_are_but_little_else() -> None:
    done = subprocess.run([sys.executable, "-c", WITHOUT], cwd=FOLDER, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "lean baseline and ours differ by: loss" in done.stdout
    assert "ours+static and ours differ by: actions" in done.stdout
    assert "floor of a call" in done.stdout
    assert "No picture was drawn" in done.stdout
    assert "pi0 was not measured: LeRobot is not installed" in done.stdout


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


# ---- inference ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_baseline_samples_what_ours_samples(dtype: torch.dtype) -> None:
    from acting.plain import PlainSampler

    model, seen = tiny_model().eval().cast(dtype), tiny_batch().observation
    noise = torch.randn(seen.batch_size, model.config.chunk_size, model.config.max_action_dim)
    ours, theirs = (which.sample(seen, noise, 3, 3) for which in (model, PlainSampler(model)))
    near = 1e-5 if dtype is torch.float32 else 5e-2
    real = seen.view_mask
    torch.testing.assert_close(theirs[0], ours[0], rtol=0, atol=near)
    torch.testing.assert_close(theirs[1][real], ours[1][real], rtol=0, atol=near)
    assert all(model.state_dict()[name].dtype == kept.dtype for name, kept in model.named_parameters())


@pytest.mark.parametrize("change", ["scale", "positions", "crop"])
def test_a_sampler_that_computes_something_else_is_noticed(change: str, monkeypatch) -> None:
    from acting.equal import prove
    from acting.scene import Setting, scene
    from acting.variants import Variant
    from transformers.cache_utils import DynamicCache

    policy, request = scene(tiny_model(), Setting(views=2, steps=3))
    plain: Any = Variant.of("plain").around(policy)
    others = ("ours+static", "ours+history", "ours+static+history")
    prove(policy, {"plain": plain} | {name: Variant.of(name).around(policy) for name in others}, request)
    if change == "scale":
        plain.sampler.stacks["action"][1].self_attn.scaling *= 1.1
    elif change == "positions":
        prefill = plain.sampler.prefill
        monkeypatch.setattr(plain.sampler, "prefill", lambda *told: _one_further(*prefill(*told)))
    else:
        monkeypatch.setattr(DynamicCache, "crop", lambda cache, length: None)
    with pytest.raises((AssertionError, RuntimeError), match=r"computes something else|size of tensor"):
        prove(policy, {"plain": plain}, request)


def _one_further(before: Any, foresight: torch.Tensor) -> tuple[Any, torch.Tensor]:
    return replace(before, last=before.last + 1), foresight


def test_a_call_has_the_shapes_of_its_setting() -> None:
    from acting.scene import Setting, scene

    model = tiny_model()
    for setting in (Setting(1, 2), Setting(4, 1, chunk=7, batch=2)):
        policy, request = scene(model, setting)
        assert policy.model.stack is model.stack
        seen = policy.observe(request.images, request.state, request.instructions)
        assert seen.images.shape[:2] == (setting.batch, setting.views) and seen.view_mask.all()
        chunk = policy.predict(request.images, request.state, request.instructions, request.noise)
        assert chunk.actions.shape == (setting.batch, setting.chunk or model.config.chunk_size, 5)


@pytest.mark.parametrize("name", ["plain", "ours", "ours+static", "ours+static+history"])
def test_stages_are_timed_apart_and_make_up_a_call(name: str) -> None:
    from acting.scene import Setting, scene
    from acting.timing import REST, percentiles, stages
    from acting.variants import Variant

    policy, request = scene(tiny_model(), Setting(steps=3))
    chosen = Variant.of(name).around(policy)
    before = vars(chosen).copy(), vars(policy.model).copy(), vars(policy.model.understanding).copy()
    told = stages({name: chosen}, request, 2)[name]
    assert {"preprocess", "vision", "encode", "denoise", REST} < told.keys()
    assert ("prefill" in told) != ({"understanding", "foresight"} <= told.keys())
    assert all(len(times) == 2 and min(times) > 0 for times in told.values())
    assert before[1:] == (vars(policy.model), vars(policy.model.understanding))
    assert before[0].keys() <= vars(chosen).keys()
    assert percentiles([float(number) for number in range(101)]) == [50, 90, 99]


def test_the_floor_counts_what_a_stage_has_to_do() -> None:
    from acting.floor import Rates, Work, work_of
    from acting.scene import Setting
    from baseline.sizes import build

    work = work_of("tiny", torch.float32, Setting(views=2, steps=4))
    model = build("tiny", "cpu")
    config, geometry = model.config, model.understanding.geometry
    layers = [layer.experts["action"] for layer in model.stack.layers]
    linear = [p for layer in layers for p in layer.parameters() if p.dim() == 2]
    head = [p for name, p in model.action.named_parameters() if not name.startswith("state_proj")]
    norms = [p for layer in layers for p in layer.parameters() if p.dim() == 1]
    weights = sum(p.numel() for p in (*linear, *head, *norms, *model.stack.norms["action"].parameters()))
    told = (
        2 * (4 + 2) + 24
    )  # tokens of two pictures of 32 pixels in patches of 8, merged, with their edges; words
    prefix = told + 2 * model.generation.tokens_per_view + 1
    kept = 2 * geometry.num_layers * geometry.num_kv_heads * geometry.head_dim * prefix
    assert work["denoise"].bytes == 4 * 4 * (weights + kept)
    inner = geometry.num_heads * geometry.head_dim
    seen = 4 * geometry.num_layers * config.chunk_size * (prefix + config.chunk_size) * inner
    products = 2 * config.chunk_size * sum(p.numel() for p in (*linear, *head) if p.dim() == 2)
    assert work["denoise"].flops == 4 * (products + seen)
    assert (
        work_of("tiny", torch.bfloat16, Setting(views=2, steps=4))["vision"].bytes * 2 == work["vision"].bytes
    )
    assert Rates(10.0, 4.0).seconds(Work(20, 4)) == (2, 1)


def test_fewer_steps_move_the_actions_of_a_policy_further() -> None:
    from acting.effects import REFERENCE, Held, chunks, ways

    policy = tiny_policy()  # three Euler steps by itself
    pairs = {key: torch.stack((view, view), dim=1) for key, view in frames(3).items()}
    held = Held(pairs, states(3), ("pick",) * 3, torch.zeros(3, 3, 3), torch.ones(3, 3, dtype=torch.bool))
    asked = ways(policy, "static")
    chosen = (REFERENCE, "euler 10", "euler 3", "euler 2", "euler 3, no foresight", "euler 3, no generation")
    told = {name: chunks(asked[name], held, draws=2) for name in chosen}
    assert told[REFERENCE].shape == (6, policy.spec.sampler.n_action_steps, 3)
    apart = {name: float((mine - told[REFERENCE]).abs().mean()) for name, mine in told.items()}
    assert 0 < apart["euler 10"] < apart["euler 2"]
    torch.testing.assert_close(told["euler 3, no foresight"], told["euler 3"], rtol=0, atol=1e-6)
    assert not torch.allclose(told["euler 3, no generation"], told["euler 3"], rtol=0, atol=1e-4)
    assert not torch.equal(told[REFERENCE][:3], told[REFERENCE][3:]), "every draw has a noise of its own"


def test_what_is_compared_is_read_from_its_name() -> None:
    from acting.pi0 import why_not
    from acting.variants import Variant, named
    from common import some_of

    assert list(named("plain+compiled,ours")) == ["plain+compiled", "ours"]
    with pytest.raises(ConfigError, match="static"):
        Variant.of("ours+statik")
    with pytest.raises(ConfigError, match="an engine does"):
        Variant.of("ours+int8")
    assert Variant.of("ours+static+history").exact and not Variant.of("ours+static+int8").exact
    with pytest.raises(ConfigError, match="plain"):
        Variant.of("plane")
    assert "GPU" in why_not("cpu")
    assert some_of("part", "calls,curves", ["calls", "curves"]) == ["calls", "curves"]
    with pytest.raises(ConfigError, match="Did you mean 'curves'"):
        some_of("part", "calls,curve", ["calls", "curves"])
