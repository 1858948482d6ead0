"""Damaged or hostile values in a checkpoint's JSON files: an error that names file or key, never a traceback."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from vla_mot.errors import CheckpointError, ConfigError
from vla_mot.hub.checkpoint import open_checkpoint
from vla_mot.hub.manifest import read_manifest
from vla_mot.hub.remote import missing_files
from vla_mot.hub.tensors import write_tensors

NANO = Path(__file__).parents[1] / "goldens" / "nano"
NAN, INFINITE = float("nan"), float("inf")


@pytest.fixture
def nano(tmp_path) -> Path:
    return Path(shutil.copytree(NANO, tmp_path / "nano"))


def edited(folder: Path, path: str, value: Any, file: str = "config.json") -> None:
    content = json.loads((folder / file).read_text())
    *groups, key = path.split(".")
    inner = content
    for group in groups:
        inner = inner[group]
    inner[key] = value
    (folder / file).write_text(json.dumps(content))


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("model.backbone.num_heads", 0),
        ("model.backbone.num_kv_heads", 0),
        ("model.backbone.num_layers", 0),
        ("model.backbone.hidden_size", -4),
        ("model.backbone.image_size", [0, 0]),
        ("model.backbone.rope_base", 0),
        ("model.backbone.rope_base", NAN),
        ("model.backbone.rms_norm_eps", NAN),
        ("model.backbone.vision.patch_size", 0),
        ("model.backbone.vision.merge_size", 0),
        ("model.backbone.vision.num_heads", 0),
        ("model.backbone.vision.num_heads", 5),
        ("model.offset_seconds", -0.5),
        ("model.offset_seconds", 0),
        ("model.offset_seconds", NAN),
        ("model.foresight.block", 0),
        ("model.foresight.image_size", [0, 0]),
        ("model.foresight.image_size", [-8, 8]),
        ("model.action.hidden_size", -2),
        ("model.generation.intermediate_size", 0),
        ("model.max_state_dim", -1),
        ("model.max_action_dim", 0),
        ("model.view_size", [0, 0]),
        ("model.view_size", [-1, 5]),
        ("model.view_size", [10**9, 10**9]),
        ("model.min_period", 0),
        ("model.min_period", NAN),
        ("model.max_period", -1),
        ("model.max_period", INFINITE),
        ("num_steps", 10**12),
        ("num_steps", 0),
    ],
)
def test_a_value_that_no_model_can_have_is_named(nano, path, value):
    edited(nano, path, value)
    with pytest.raises((CheckpointError, ConfigError)) as caught:
        open_checkpoint(nano).load()
    key = path.replace("num_steps", "sampler.num_steps")
    assert key.removeprefix("model.backbone.").removeprefix("model.foresight.") in str(caught.value)
    assert " must " in str(caught.value)


@pytest.mark.parametrize(
    ("path", "value"),
    [("model.backbone.hidden_size", 10**18), ("model.backbone.vocab_size", 10**19), ("model.chunk_size", "")],
)
def test_whatever_a_library_objects_to_is_a_checkpoint_error(nano, path, value):
    edited(nano, path, value)
    with pytest.raises(
        (CheckpointError, ConfigError), match=r"describe no model that can be built|whole number"
    ):
        open_checkpoint(nano).load()


def digits(folder: Path, file: str) -> None:
    (folder / file).write_text('{"type": ' + "9" * 5000 + "}")


def nested(folder: Path, file: str) -> None:
    (folder / file).write_text("[" * 200_000)


@pytest.mark.parametrize("damage", [digits, nested])
@pytest.mark.parametrize("file", ["config.json", "stats.json"])
def test_json_that_python_gives_up_on_is_damaged(nano, damage, file):
    damage(nano, file)
    with pytest.raises(CheckpointError, match=rf"^\S*{file} is damaged: "):
        open_checkpoint(nano)


@pytest.mark.parametrize("damage", [digits, nested])
def test_so_is_a_manifest(nano, damage):
    damage(nano, "manifest.json")
    with pytest.raises(CheckpointError, match=r"manifest.json is damaged: "):
        read_manifest(nano)


def test_an_endless_size_in_a_manifest(nano):
    edited(nano, "files", {"config.json": {"sha256": "", "bytes": INFINITE}}, "manifest.json")
    with pytest.raises(CheckpointError, match=r"manifest.json is damaged"):
        read_manifest(nano)


def without_statistics(folder: Path) -> str:
    (folder / "stats.json").unlink()
    return "stats.json is missing"


def without_constants(folder: Path) -> str:
    (folder / "released_config.json").write_text("{}")
    return "released_constants.safetensors is missing"


def damaged_rest(folder: Path) -> str:
    without_constants(folder)
    write_tensors(folder / "released_constants.safetensors", {})
    (folder / "released_config.json").write_text("{")
    return "released_config.json is damaged"


@pytest.mark.parametrize("damage", [without_statistics, without_constants, damaged_rest])
def test_a_missing_or_damaged_file_is_named_and_nothing_else_is_blamed(nano, damage):
    said = damage(nano)
    with pytest.raises(CheckpointError) as caught:
        open_checkpoint(nano)
    assert said in str(caught.value)
    assert "of the wrong kind" not in str(caught.value) and "CheckpointError" not in str(caught.value)


@pytest.mark.parametrize(
    "text",
    [
        "[" * 200_000,
        '{"a": 1}',
        '{"weight_map": {"a": 1}}',
        '{"weight_map": {"a": "../b"}}',
        '{"weight_map": {}}',
    ],
)
def test_an_index_that_is_none(tmp_path, text):
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "model.safetensors.index.json").write_text(text)
    with pytest.raises(CheckpointError, match=r"index.json is damaged .*; fetch or write it again"):
        missing_files(tmp_path)
