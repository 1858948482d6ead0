"""`info`, `verify` and `convert` on checkpoints of both layouts, whole and damaged."""

import json
import shutil
from functools import partial
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

GOLDENS = Path(__file__).parents[1] / "goldens"
NANO = GOLDENS / "nano"


@pytest.fixture
def nano(tmp_path) -> Path:
    return Path(shutil.copytree(NANO, tmp_path / "nano"))


@pytest.mark.parametrize("kind", ["a1_3b_tiny", "a1_2b_tiny"])
def test_a_released_checkpoint_there_and_back(vla_mot, goldens, tmp_path, kind):
    released, ours, theirs = goldens / kind, tmp_path / "ours", tmp_path / "theirs"
    shapes = f"architecture={GOLDENS / kind}.yaml"
    said = vla_mot("info", f"checkpoint={released}", shapes)
    assert said.code == 0 and "the authors' " in said.out and "robots   " in said.out
    said = vla_mot("convert", f"checkpoint={released}", f"output={ours}", shapes)
    assert (said.code, "(native)" in said.out) == (0, True)
    said = vla_mot("verify", f"checkpoint={ours}")
    assert (said.code, said.out.count("ok")) == (0, 3)
    said = vla_mot("convert", f"checkpoint={ours}", f"output={theirs}", "layout=released")
    assert said.code == 0
    before, after = load_file(released / "model.safetensors"), load_file(theirs / "model.safetensors")
    assert before.keys() == after.keys()
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())


def test_a_released_checkpoint_has_nothing_to_replay(vla_mot, goldens):
    said = vla_mot(
        "verify", f"checkpoint={goldens / 'a1_3b_tiny'}", f"architecture={GOLDENS / 'a1_3b_tiny.yaml'}"
    )
    assert (said.code, said.out.count("absent")) == (0, 2)


def test_what_shapes_leave_open_must_be_said(vla_mot, goldens):
    said = vla_mot("info", f"checkpoint={goldens / 'a1_3b_tiny'}")
    assert said.code == 2
    assert "its shapes do not tell backbone.mrope_sections" in said.err
    assert "architecture=<file.yaml>" in said.err


def test_a_robot_of_ones_own_is_opened_with_its_file(vla_mot, goldens, tmp_path):
    from tests.hub.test_released_files import told_of, wide_robot

    folder = tmp_path / "released"
    folder.mkdir()
    for name in ("config.json", "model.safetensors"):
        shutil.copyfile(goldens / "a1_3b_tiny" / name, folder / name)
    (folder / "stats.json").write_text(json.dumps(told_of("toaster", 2)))
    shapes = f"architecture={GOLDENS / 'a1_3b_tiny.yaml'}"
    said = vla_mot("info", f"checkpoint={folder}", shapes)
    assert (said.code, "toaster/delta" in said.out) == (0, False)
    robot = f"embodiments=[{wide_robot(tmp_path)}]"
    said = vla_mot("info", f"checkpoint={folder}", shapes, robot, "action_mode=abs")
    assert said.code == 0, said.err
    assert "toaster/abs: action" in said.out and ", delta]" not in said.out


def test_converting_to_bfloat16_is_verified_too(vla_mot, nano, tmp_path):
    said = vla_mot("convert", f"checkpoint={nano}", f"output={tmp_path / 'half'}", "dtype=bfloat16")
    assert said.code == 0
    said = vla_mot("verify", f"checkpoint={tmp_path / 'half'}")
    assert said.code == 0
    assert (
        load_file(tmp_path / "half" / "model.safetensors")["action.out_proj.weight"].dtype == torch.bfloat16
    )


def tampered(folder: Path) -> None:
    path = folder / "model.safetensors"
    content = bytearray(path.read_bytes())
    content[-3] ^= 1  # the lowest bits of the last number
    path.write_bytes(bytes(content))


def other_statistics(folder: Path) -> None:
    told = json.loads((folder / "stats.json").read_text())
    told["conveyor"]["delta"]["action"]["std"][0] *= 1.5
    (folder / "stats.json").write_text(json.dumps(told))
    rehash(folder)


def other_weights(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    weights["action.out_proj.weight"] *= 1.01
    save_file(weights, folder / "model.safetensors")
    rehash(folder)


def other_recording(folder: Path, part: str, value: torch.Tensor) -> None:
    recorded = load_file(folder / "golden.safetensors")
    recorded[f"conveyor/delta:{part}"] = value
    save_file(recorded, folder / "golden.safetensors")
    rehash(folder)


OTHER_RECORDINGS = [
    ("instruction", torch.full((4,), 255, dtype=torch.uint8)),  # no UTF-8
    ("instruction", torch.zeros(4)),
    ("instruction", torch.zeros(2, 3, dtype=torch.uint8)),
    ("instruction", torch.tensor(2**40)),  # so many bytes, to whom takes it for a number
    ("noise", torch.zeros(2, 3)),
]


def rehash(folder: Path) -> None:
    """A manifest that fits again, as if the change had been made with care."""
    from vla_mot.hub.manifest import write_manifest

    write_manifest(folder)


@pytest.mark.parametrize(
    ("damage", "check", "message"),
    [
        (tampered, "files", "model.safetensors was changed"),
        (
            lambda folder: (folder / "policy_preprocessor.json").unlink(),
            "files",
            "preprocessor.json is missing",
        ),
        (lambda folder: (folder / "else.json").write_text("{}"), "files", "else.json is not in the manifest"),
        (lambda folder: (folder / "manifest.json").write_text("{}"), "files", "is of format None"),
        (other_statistics, "golden answer", "actions differ by"),
        (other_weights, "golden answer", "actions differ by"),
        *(
            (partial(other_recording, part=part, value=value), "golden answer", "cannot be replayed")
            for part, value in OTHER_RECORDINGS
        ),
    ],
)
def test_a_damaged_checkpoint_is_found(vla_mot, nano, damage, check, message):
    damage(nano)
    said = vla_mot("verify", f"checkpoint={nano}")
    assert said.code == 2
    assert message in " ".join(said.out.split())
    assert f"failed 1 of its checks ({check})" in said.err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("layout=released",), "not made from a checkpoint in the authors' layout"),
        (("layout=relaesed",), "Did you mean 'released'?"),
        (("dtype=float16",), "Known: bfloat16, float32"),
        (("architecture=nowhere.yaml",), "cannot be read"),
        ((f"architecture={NANO / 'model.safetensors'}",), "is no YAML"),
        ((f"architecture={GOLDENS / 'a1_3b_tiny.yaml'}",), "states its own architecture"),
    ],
)
def test_a_conversion_that_cannot_be(vla_mot, nano, tmp_path, words, message):
    said = vla_mot("convert", f"checkpoint={nano}", f"output={tmp_path / 'out'}", *words)
    assert (said.code, message in said.err) == (2, True), said.err
    assert not (tmp_path / "out").exists()


def test_an_output_that_is_used_is_left_alone(vla_mot, nano, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "note.txt").write_text("mine")
    said = vla_mot("convert", f"checkpoint={nano}", f"output={tmp_path / 'out'}")
    assert (said.code, "already used" in said.err) == (2, True)
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["note.txt"]
