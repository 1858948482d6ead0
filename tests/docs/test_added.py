"""What the pages add to the source in their examples: a backbone, a tokenizer, a solver."""

import importlib.util
from pathlib import Path

import pytest
import torch
import yaml

import vla_mot.backbones
import vla_mot.flow.solvers
import vla_mot.foresight
from tests.docs.pages import ROOT, all_blocks
from tests.model.tiny import tiny_batch, tiny_config, tiny_noise
from vla_mot.foresight import build_tokenizer
from vla_mot.model.model import VlaMotModel

TITLED = {block.title: block.text for block in all_blocks() if block.title}


@pytest.fixture
def added(tmp_path, monkeypatch):
    """Put a page's file where its package finds it."""

    def add(file: str) -> None:
        (tmp_path / Path(file).name).write_text(TITLED[file])
        package = getattr(vla_mot, Path(file).parent.name)
        monkeypatch.setattr(package, "__path__", [*package.__path__, str(tmp_path)])

    return add


def test_the_backbone_joins_a_model_that_learns(added):
    """Every one of its weights gets a gradient."""
    added("src/vla_mot/backbones/patches.py")
    told = yaml.safe_load(TITLED["conf/backbone/patches.yaml"]) | {"image_size": [32, 32], "text_length": 6}
    options = {key: value for key, value in told.items() if key != "weights"}
    torch.manual_seed(0)
    model = VlaMotModel(tiny_config(backbone=options))
    batch = tiny_batch()
    losses = model.losses(batch, *tiny_noise(batch))
    (losses.action_sum.sum() + losses.foresight_sum.sum()).backward()
    ours = {name: weight.grad for name, weight in model.named_parameters() if "understanding" in name}
    last = f"layers.{told['num_layers'] - 1}."  # behind its keys and values nobody reads
    silent = [name for name, grad in ours.items() if grad is None or not grad.any()]
    assert [name for name in silent if last not in name and "norms." not in name] == []
    assert model.understanding.stock_key("model.norm.weight") == "stack.norms.understanding.weight"


def test_the_tokenizer_gives_latents_and_pictures_of_the_sizes_that_it_states(added):
    added("src/vla_mot/foresight/small.py")
    told = yaml.safe_load(TITLED["conf/foresight/small.yaml"])
    omitted = ("weights", "offset_frames", "offset_seconds")
    tokenizer = build_tokenizer({key: value for key, value in told.items() if key not in omitted})
    pictures = torch.rand(2, 3, 64, 64) * 2 - 1
    latents = tokenizer.encode(pictures)
    assert latents.shape == (2, tokenizer.latent_channels, *tokenizer.latent_size) == (2, 3, 16, 16)
    back = tokenizer.decode(latents)
    assert back.shape == pictures.shape
    torch.testing.assert_close(tokenizer.encode(back), latents)


def test_the_solver_is_of_the_order_that_is_said(tmp_path):
    """The page's lines on a copy of the file; halving the step divides the error by four, by two with Euler."""
    file = "src/vla_mot/flow/solvers.py"
    source = (ROOT / file).read_text()
    for hunk in TITLED[file].split("@@\n"):
        lines = hunk.splitlines()
        before = "\n".join(line[1:] for line in lines if not line.startswith("+"))
        after = "\n".join(line[1:] for line in lines if not line.startswith("-"))
        assert source.count(before) == 1, before
        source = source.replace(before, after)
    (tmp_path / "solvers.py").write_text(source)
    spec = importlib.util.spec_from_file_location("solvers_of_the_page", tmp_path / "solvers.py")
    solvers = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(solvers)

    def error(solver: str, steps: int) -> float:
        start = torch.ones(1, 1, 1, dtype=torch.float64)
        end = solvers.integrate(lambda x, level: x * level[:, None, None].double(), start, steps, solver)
        return abs(end.item() - torch.exp(torch.tensor(-0.5, dtype=torch.float64)).item())

    assert error("ralston", 8) / error("ralston", 16) == pytest.approx(4, rel=0.15)
    assert error("euler", 8) / error("euler", 16) == pytest.approx(2, rel=0.15)
    assert len(solvers.evaluated_levels(5, "ralston")) == 10
