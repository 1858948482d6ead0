"""What `convert` carries along, and pickles, for whoever insists."""

import json
import pickle
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from vla_mot.hub.manifest import compare, write_manifest
from vla_mot.hub.unpickle import unpickle

GOLDENS = Path(__file__).parents[1] / "goldens"
NANO = GOLDENS / "nano"
TRAINING = {"stage": "posttrain", "train": {"steps": 7}}


@pytest.fixture
def trained(tmp_path) -> Path:
    folder = Path(shutil.copytree(NANO, tmp_path / "trained"))
    (folder / "training.json").write_text(json.dumps(TRAINING))
    (folder / "README.md").write_text("# A policy\n")
    write_manifest(folder)
    return folder


def test_what_made_a_policy_travels_with_it(vla_mot, trained, tmp_path):
    out = tmp_path / "half"
    said = vla_mot("convert", f"checkpoint={trained}", f"output={out}", "dtype=bfloat16")
    assert said.code == 0, said.err
    assert json.loads((out / "training.json").read_text()) == TRAINING
    assert (out / "README.md").read_text() == "# A policy\n"
    assert compare(out) == [] and "training.json" in json.loads((out / "manifest.json").read_text())["files"]


class Trap:
    """Calls a function when it is unpickled."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self):
        return Path.touch, (self.file,)


def pickled(source: Path, folder: Path, extra: dict | None = None) -> Path:
    folder.mkdir()
    shutil.copyfile(source / "config.json", folder / "config.json")
    weights = load_file(source / "model.safetensors")
    torch.save(weights | (extra or {}), folder / "pytorch_model.bin")
    return folder


def test_a_pickle_is_converted_only_for_whoever_insists(vla_mot, goldens, tmp_path):
    kind = "a1_3b_tiny"
    folder, out = pickled(goldens / kind, tmp_path / "theirs"), tmp_path / "ours"
    words = (f"checkpoint={folder}", f"output={out}", f"architecture={GOLDENS / kind}.yaml")
    said = vla_mot("convert", *words)
    assert (said.code, "allow_pickle=true" in said.err, out.exists()) == (2, True, False)
    said = vla_mot("convert", *words, "allow_pickle=true")
    assert said.code == 0, said.err
    assert vla_mot("verify", f"checkpoint={out}").code == 0
    whole = tmp_path / "whole"
    assert vla_mot("convert", f"checkpoint={goldens / kind}", f"output={whole}", words[2]).code == 0
    assert (out / "model.safetensors").read_bytes() == (whole / "model.safetensors").read_bytes()


def test_a_pickle_of_more_than_tensors_runs_nothing(vla_mot, goldens, tmp_path):
    kind, ran = "a1_3b_tiny", tmp_path / "ran"
    folder = pickled(goldens / kind, tmp_path / "theirs", {"trap": Trap(ran)})
    with (folder / "pytorch_model.bin").open("rb") as file, pytest.raises(pickle.UnpicklingError):
        torch.load(file, weights_only=True)
    shapes = f"architecture={GOLDENS / kind}.yaml"
    said = vla_mot(
        "convert", f"checkpoint={folder}", f"output={tmp_path / 'out'}", shapes, "allow_pickle=true"
    )
    assert (said.code, "holds more than tensors" in said.err) == (2, True)
    assert not ran.exists() and not (tmp_path / "out").exists()


def test_what_lies_beside_a_pickle_comes_along(tmp_path):
    source, target = Path(shutil.copytree(NANO, tmp_path / "a")), tmp_path / "b"
    torch.save(load_file(source / "model.safetensors"), source / "pytorch_model.bin")
    (source / "model.safetensors").unlink()
    (source / "tokenizer").mkdir()
    for name in ("README.md", "tokenizer/vocab.txt", "trainer.pt"):
        (source / name).write_text("words")
    target.mkdir()
    unpickle(source, target)
    found = {path.relative_to(target).as_posix() for path in target.rglob("*") if path.is_file()}
    assert found == {path.name for path in NANO.iterdir()} | {"README.md", "tokenizer/vocab.txt"}


def test_a_tied_tensor_is_kept_once(tmp_path):
    source, target = tmp_path / "a", tmp_path / "b"
    source.mkdir(), target.mkdir()
    head = torch.rand(3, 2)
    torch.save(
        {"lm_head.weight": head, "embed.weight": head, "part": head[1:], "none": torch.empty(0)},
        source / "pytorch_model.bin",
    )
    unpickle(source, target)
    kept = load_file(target / "model.safetensors")
    assert kept.keys() == {"embed.weight", "part", "none"}
    assert torch.equal(kept["embed.weight"], head) and torch.equal(kept["part"], head[1:])


@pytest.mark.parametrize("content", [[1], {"a": "text"}, {3: torch.zeros(1)}])
def test_a_pickle_without_weights_is_refused(tmp_path, content):
    torch.save(content, tmp_path / "pytorch_model.bin")
    with pytest.raises(ValueError, match="holds no tensors by name"):
        unpickle(tmp_path, tmp_path)
