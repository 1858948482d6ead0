"""The released policies behind LeRobot's interface: found by their type, opened, and acting as `vla_mot.Policy`."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import yaml
from huggingface_hub import constants
from lerobot.configs import PreTrainedConfig
from lerobot.configs.types import FeatureType, PolicyFeature
from lerobot.policies.factory import get_policy_class, make_policy, make_pre_post_processors

from lerobot_env_conveyor import ConveyorEnvConfig
from tests.policy.conftest import GRIPPER, HEAD, REPO_ID
from tests.policy.test_commands import evaluate, lerobot, train
from vla_mot.errors import CheckpointError, ConfigError
from vla_mot.hub.files import read_json
from vla_mot.hub.native import read_spec
from vla_mot.hub.spec import SamplerConfig
from vla_mot.infer.policy import Policy
from vla_mot.infer.session import Session
from vla_mot.policy import (
    InternA1Config,
    InternA1Policy,
    QwenA1Config,
    QwenA1Policy,
    VlaMotConfig,
    VlaMotPolicy,
)
from vla_mot.policy.processor_files import with_processor_files

ARCHITECTURES = Path(__file__).parents[1] / "goldens"
TYPES = {
    "a1_3b_tiny": ("qwena1", QwenA1Config, QwenA1Policy),
    "a1_2b_tiny": ("interna1", InternA1Config, InternA1Policy),
}

COMMIT = "0123456789" * 4
# As `lerobot-eval` overrides steps; a pipeline without them is refused.
EVALS = {"rename_observations_processor": {"rename_map": {}}, "device_processor": {"device": "cpu"}}


def numbers(width: int) -> dict[str, list[float]]:
    rows = {"min": -1.0, "max": 2.0, "mean": 0.2, "std": 0.5}
    return {key: [value] * width for key, value in rows.items()} | {"count": [7]}


def robots(*names: str) -> dict:
    widths = {"conveyor": (4, 3), "panda": (8, 7)}
    return {
        name: {"observation.state": numbers(widths[name][0]), "action": numbers(widths[name][1])}
        for name in names
    }


@pytest.fixture(params=TYPES)
def kind(request) -> str:
    return request.param


@pytest.fixture
def architecture(kind) -> Path:
    return ARCHITECTURES / f"{kind}.yaml"


@pytest.fixture
def released(goldens, kind, tmp_path) -> Path:
    """A released checkpoint that drives the conveyor."""
    folder = tmp_path / kind
    folder.mkdir()
    for name in ("config.json", "model.safetensors"):
        shutil.copyfile(goldens / kind / name, folder / name)
    (folder / "stats.json").write_text(json.dumps(robots("conveyor")))
    return folder


def configured(folder: Path | str, *options: str) -> PreTrainedConfig:
    """As LeRobot's commands do it."""
    config = PreTrainedConfig.from_pretrained(folder, cli_overrides=[f"--{option}" for option in options])
    config.pretrained_path = folder
    return config


def observation(step: int) -> dict:
    generator = torch.Generator().manual_seed(step)
    frames = torch.randint(0, 256, (2, 2, 3, 40, 40), generator=generator, dtype=torch.uint8)
    return {
        HEAD: frames[0].float() / 255,
        GRIPPER: frames[1].float() / 255,
        "observation.state": torch.rand(2, 4, generator=generator),
        "task": ["pick the red block", "pick the blue block"],
    }


def test_lerobot_finds_both_types(goldens, kind):
    name, config_class, policy_class = TYPES[kind]
    config = PreTrainedConfig.from_pretrained(goldens / kind)
    assert type(config) is config_class and config.type == name
    assert get_policy_class(name) is policy_class and policy_class.name == name
    assert hasattr(config, "imagenet_mean") == (name == "interna1")


def test_the_authors_configuration_is_written_back_word_for_word(goldens, kind, tmp_path):
    config = configured(goldens / kind, "embodiment=panda", "architecture=x.yaml", "device=cpu")
    config.save_pretrained(tmp_path)
    assert read_json(tmp_path / "config.json") == read_json(goldens / kind / "config.json")


def test_it_acts_as_the_policy_does(released, architecture):
    config = configured(released, f"architecture={architecture}", "n_action_steps=2", "num_inference_steps=2")
    policy = make_policy(config, env_cfg=ConveyorEnvConfig())
    assert isinstance(policy, get_policy_class(config.type)) and isinstance(policy.config, VlaMotConfig)
    before, after = make_pre_post_processors(config, config.pretrained_path, preprocessor_overrides=EVALS)
    plain = Policy.from_pretrained(released, architecture=yaml.safe_load(architecture.read_text()))
    spec = replace(plain.spec, sampler=SamplerConfig(num_steps=2, n_action_steps=2))
    session = Session(Policy(plain.model, spec), seeds=[0, 1])
    for step in range(3):  # two predictions
        seen = observation(step)
        images = {key: (seen[key] * 255).round().to(torch.uint8) for key in (HEAD, GRIPPER)}
        expected = session.act(images, seen["observation.state"], seen["task"])
        assert torch.equal(after(policy.select_action(before(seen))), expected)
    policy.reset()
    assert policy.predict_action_chunk(observation(0)).shape == (2, 6, 3)


def test_lerobots_commands_are_told_where_the_processors_are(released, architecture):
    config = configured(released, f"architecture={architecture}")
    make_policy(config, env_cfg=ConveyorEnvConfig())
    assert list(config.image_features) == [HEAD, GRIPPER]
    assert sorted(path.name for path in released.iterdir()) == [
        "config.json",
        "model.safetensors",
        "stats.json",
    ]
    assert config.pretrained_path != released
    linked = config.pretrained_path
    again = make_policy(config, env_cfg=ConveyorEnvConfig())  # it is a checkpoint still
    assert config.pretrained_path == linked
    assert again.spec.robot().embodiment.name == "conveyor"


def test_a_repository_of_the_hub_opens_by_its_name(released, kind, architecture):
    """From the cache, whose files are not ours to add to. The name is a text in `lerobot-rollout`."""
    cache = Path(constants.HF_HUB_CACHE) / f"models--released--{kind}"
    (cache / "refs").mkdir(parents=True)
    (cache / "refs" / "main").write_text(COMMIT)
    snapshot = Path(shutil.copytree(released, cache / "snapshots" / COMMIT))
    config = configured(f"released/{kind}", f"architecture={architecture}")
    config.pretrained_revision = COMMIT
    policy = get_policy_class(config.type).from_pretrained(
        config.pretrained_path, config=config, revision=config.pretrained_revision
    )
    make_pre_post_processors(config, config.pretrained_path, config.pretrained_revision)
    assert (Path(config.pretrained_path) / "model.safetensors").samefile(snapshot / "model.safetensors")
    assert policy.config.pretrained_path == f"released/{kind}"
    assert len(list(snapshot.iterdir())) == 3


def test_where_links_are_not_allowed_the_way_out_is_said(released, monkeypatch):
    def refuse(*_args):
        raise OSError("a required privilege is not held by the client")

    monkeypatch.setattr(Path, "symlink_to", refuse)
    with pytest.raises(ConfigError, match=r"privilege is not held.*Run `vla-mot convert checkpoint="):
        with_processor_files(released)


def test_the_robot_is_chosen(released, architecture):
    (released / "stats.json").write_text(json.dumps(robots("conveyor", "panda")))
    options = [f"architecture={architecture}"]
    with pytest.raises(ConfigError, match="fits 2 robots of the policy"):
        make_policy(configured(released, *options), env_cfg=ConveyorEnvConfig())
    options += ["embodiment=conveyor", "action_mode=abs"]
    policy = make_policy(configured(released, *options), env_cfg=ConveyorEnvConfig())
    assert (policy.config.embodiment, policy.config.action_mode) == ("conveyor", "abs")
    assert len(policy.spec.robots) == 2


def test_what_is_saved_is_ours_and_can_be_trained(released, architecture, tmp_path):
    config = configured(released, f"architecture={architecture}")
    policy = make_policy(config, env_cfg=ConveyorEnvConfig())
    policy.save_pretrained(tmp_path / "ours")
    assert read_spec(tmp_path / "ours").released.config == read_json(released / "config.json")
    again = VlaMotPolicy.from_pretrained(tmp_path / "ours")
    assert again.config.pretrained_path == released
    assert torch.equal(again.select_action(observation(0)), policy.select_action(observation(0)))
    assert again.config.observation_delta_indices == [-15, 0, 15]


def test_our_policy_opens_the_authors_layout_by_itself(released, architecture, kind):
    options = yaml.safe_load(architecture.read_text())
    ours = VlaMotPolicy.from_pretrained(released, architecture=options)
    theirs = get_policy_class(TYPES[kind][0]).from_pretrained(released, architecture=options)
    seen = observation(0)
    assert torch.equal(ours.select_action(seen), theirs.select_action(seen))
    assert ours.config == theirs.config
    before, _ = make_pre_post_processors(theirs.config)
    assert torch.equal(before(seen)["observation.state"], seen["observation.state"])


def test_what_has_no_effect_is_named(released, architecture, caplog):
    config = configured(released, f"architecture={architecture}", "compile_model=true")
    get_policy_class(config.type).from_pretrained(released, config=config)
    assert "compile_model=True has no effect" in caplog.text


def test_a_dtype_from_the_command_line_is_used_and_kept(released, architecture, tmp_path):
    config = configured(released, f"architecture={architecture}", "dtype=bfloat16")
    policy = make_policy(config, env_cfg=ConveyorEnvConfig())
    assert policy.model.action.out_proj.weight.dtype == torch.bfloat16
    policy.save_pretrained(tmp_path / "ours")
    assert read_spec(tmp_path / "ours").dtype == "bfloat16"
    again, seen = VlaMotPolicy.from_pretrained(tmp_path / "ours"), observation(0)
    assert torch.equal(again.select_action(seen), policy.select_action(seen))


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("chunk_size=7", "differ in chunk_size; what belongs to the weights"),
        ("optimizer_lr=1.0", "differ in optimizer_lr"),
        ("embodiment=aloha", "It knows conveyor/delta"),
        ("action_mode=relative", "relative"),
        ("n_action_steps=9", "n_action_steps must lie in 1 … chunk_size = 6, got 9"),
        ("dtype=float8", "--policy.dtype"),
        ("architecture=nowhere.yaml", "architecture=nowhere.yaml cannot be read"),
    ],
)
def test_what_does_not_fit_is_said(released, architecture, option, message):
    config = configured(released, f"architecture={architecture}", option)
    with pytest.raises((ConfigError, CheckpointError), match=message):
        get_policy_class(config.type).from_pretrained(released, config=config)


def test_an_environment_with_other_actions_is_refused(released, architecture):
    config = configured(released, f"architecture={architecture}")
    config.output_features = {"action": PolicyFeature(FeatureType.ACTION, (2,))}  # as `make_policy` does
    with pytest.raises(ConfigError, match="action has 2 dimensions, embodiment 'conveyor'"):
        get_policy_class(config.type).from_pretrained(released, config=config)


def test_a_configuration_of_another_type_is_refused(native, released, architecture):
    config = configured(released, f"architecture={architecture}")
    config.architecture = None
    with pytest.raises(
        ConfigError, match="holds a policy of the native layout, the configuration is of type"
    ):
        get_policy_class(config.type).from_pretrained(native, config=config)


def test_there_is_none_from_scratch(kind):
    name, config_class, policy_class = TYPES[kind]
    with pytest.raises(ConfigError, match=f"a {name} policy is opened, not made"):
        policy_class(config_class())


@pytest.mark.parametrize(
    "asked", ["get_optimizer_preset", "observation_delta_indices", "action_delta_indices"]
)
def test_training_asks_for_a_converted_checkpoint(goldens, kind, asked):
    config = configured(goldens / kind)
    with pytest.raises(ConfigError, match=r"`vla-mot convert checkpoint=\S+ output=<folder>` first"):
        value = getattr(config, asked)
        value()


@pytest.mark.slow
def test_lerobot_train_trains_the_converted_one(released, architecture, dataset, tmp_path):
    said = lerobot(
        "train",
        f"--policy.path={released}",
        f"--dataset.root={dataset}",
        f"--dataset.repo_id={REPO_ID}",
        f"--output_dir={tmp_path / 'refused'}",
        fails=True,
    )
    assert "Run `vla-mot convert" in said and not (tmp_path / "refused").exists()
    policy = Policy.from_pretrained(released, architecture=yaml.safe_load(architecture.read_text()))
    policy.save_pretrained(tmp_path / "ours")
    saved = train(dataset, tmp_path / "run", f"--policy.path={tmp_path / 'ours'}", "--steps=1")
    trained = Policy.from_pretrained(saved).model.action.out_proj.weight
    assert not torch.equal(trained, policy.model.action.out_proj.weight)


@pytest.mark.sim
@pytest.mark.slow
def test_lerobot_eval_drives_the_conveyor(goldens, tmp_path):
    """The stock command on the authors' files as they are: two robots, no processors, an unpublished size."""
    kind = "a1_3b_tiny"
    folder = tmp_path / kind
    shutil.copytree(goldens / kind, folder, copy_function=shutil.copyfile)
    folder.chmod(0o755)
    (folder / "stats.json").write_text(json.dumps(robots("panda", "conveyor")))
    info = evaluate(
        folder,
        tmp_path / "eval",
        "--policy.embodiment=conveyor",
        f"--policy.architecture={ARCHITECTURES / kind}.yaml",
        "--env.max_steps=4",
        "--eval.use_async_envs=false",
    )
    assert info["overall"]["n_episodes"] == 2
