"""Weights are float32 or bfloat16 in one pattern; a lone other one is named when the file is opened."""

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file

from vla_mot.errors import CheckpointError, ConfigError
from vla_mot.hub.checkpoint import Checkpoint, open_checkpoint
from vla_mot.infer.golden import record_golden
from vla_mot.infer.policy import Policy
from vla_mot.infer.verify import verify
from vla_mot.model.model import VlaMotModel

ARCHITECTURES = Path(__file__).parents[1] / "goldens"
NANO = ARCHITECTURES / "nano"
KINDS = ["a1_3b_tiny", "a1_2b_tiny"]
NORMS = ("input_layernorm", "post_attention_layernorm", "language_model.norm")


@pytest.fixture(params=KINDS)
def released(goldens, request, tmp_path) -> Path:
    """A copy of a tiny checkpoint in the authors' layout, named after its kind."""
    folder = tmp_path / request.param
    folder.mkdir()
    for name in ("config.json", "model.safetensors"):
        shutil.copy(goldens / request.param / name, folder / name)
    return folder


def opened(folder: Path, **options: Any) -> Checkpoint:
    shapes = yaml.safe_load((ARCHITECTURES / f"{folder.name}.yaml").read_text())
    return open_checkpoint(folder, architecture=shapes, **options)


def recast(folder: Path, change) -> None:
    """Rewrite the weights: `change` says the dtype of every floating tensor, by name."""
    weights = load_file(folder / "model.safetensors")
    cast = {name: x.to(change(name)) if x.is_floating_point() else x for name, x in weights.items()}
    save_file(cast, folder / "model.safetensors")


def as_published(name: str) -> torch.dtype:
    """bfloat16 but for the two norms per layer and the understanding's last one (FACTS §6, 15)."""
    return torch.float32 if any(part in name for part in NORMS) else torch.bfloat16


def float32(name: str) -> torch.dtype:
    return torch.float32


@pytest.mark.parametrize("usual", [float32, as_published])
@pytest.mark.parametrize("lone", ["layers.1.self_attn.q_proj.weight", "action_out_proj.weight"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.float64, torch.float8_e4m3fn, "the other"])
def test_a_lone_weight_of_another_dtype_is_named(released, usual, lone, dtype):
    weights = load_file(released / "model.safetensors")
    name = next(name for name in weights if name.endswith(lone))
    if dtype == "the other":
        dtype = torch.bfloat16 if usual is float32 else torch.float32
    recast(released, lambda each: dtype if each == name else usual(each))
    said = rf"{name.replace('.', '[.]')} \(our \S+\) has dtype {dtype}, expected {usual(name)}"
    with pytest.raises(CheckpointError, match=said) as caught:
        opened(released).load()
    assert str(caught.value).count("has dtype") == 1
    failed = next(check for check in verify(opened(released)) if check.passed is False)
    assert (failed.name, "has dtype" in failed.text) == ("weights", True)


def test_no_dtype_but_the_two_will_do(released):
    recast(released, lambda name: torch.float32 if "cosmos" in name else torch.float16)
    with pytest.raises(CheckpointError, match=r"dtype torch.float16, expected torch.float32"):
        opened(released).load()


def tower(name: str) -> bool:
    return any(part in name for part in ("visual.", "vision_tower.", "projector."))


def heads(name: str) -> bool:
    return "_expert." not in name and "cosmos_tokenizer" not in name and not name.startswith("model.cosmos.")


@pytest.mark.parametrize(
    "pattern",
    [
        as_published,
        lambda name: torch.float32 if heads(name) else as_published(name),
        lambda name: torch.float32 if "norm.weight" in name and "_expert" in name else torch.bfloat16,
    ],
    ids=["published", "float32 heads", "all norms in float32"],
)
def test_every_accepted_pattern_acts(released, pattern):
    recast(released, lambda name: as_published(name) if tower(name) else pattern(name))
    found = opened(released)
    recorded = record_golden(Policy(found.load(), found.spec))
    assert torch.isfinite(recorded["observation:actions"]).all()
    wide = record_golden(Policy(found.load(dtype=torch.float32), found.spec))
    assert torch.allclose(recorded["observation:actions"], wide["observation:actions"], atol=0.1)


def test_training_starts_from_no_other_dtype_either(tmp_path):
    folder = Path(shutil.copytree(NANO, tmp_path / "nano"))
    recast(folder, lambda name: torch.float16 if name == "action.out_proj.weight" else torch.float32)
    found = open_checkpoint(folder)
    with pytest.raises(
        CheckpointError, match=r"action.out_proj.weight has dtype torch.float16, expected torch.float32"
    ):
        found.load_into(VlaMotModel(found.spec.model))


def test_a_stored_bfloat16_checkpoint_may_be_trained_on_in_float32(tmp_path):
    Policy.from_pretrained(NANO, dtype=torch.bfloat16).save_pretrained(tmp_path / "half")
    found = open_checkpoint(tmp_path / "half")
    model = VlaMotModel(found.spec.model)
    found.load_into(model)
    assert model.action.out_proj.weight.dtype == torch.float32
    assert torch.equal(model.action.out_proj.weight, found.load().action.out_proj.weight.float())


def test_what_could_not_be_read_again_is_not_written(released, tmp_path):
    found = opened(released)
    policy = Policy(found.load(), found.spec)
    policy.model.action.out_proj.half()
    with pytest.raises(ConfigError, match=r"weights are mixed, but action.out_proj.weight is torch.float16"):
        policy.save_pretrained(tmp_path / "saved")
