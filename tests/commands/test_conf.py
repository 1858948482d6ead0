"""Every file under conf/ composes, and becomes what the library takes. A new file inherits these tests."""

from pathlib import Path

import pytest
import torch
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from tests.composed import composed
from tests.infer.tiny_policy import tiny_policy
from vla_mot.backbones import build_backbone
from vla_mot.commands import simulators
from vla_mot.commands.engines import with_engine
from vla_mot.commands.manual import COMMANDS
from vla_mot.commands.settings import section
from vla_mot.commands.training_settings import training_config
from vla_mot.conf_dir import conf_dir
from vla_mot.errors import ConfigError
from vla_mot.evaluate.metaworld import graphics
from vla_mot.foresight import build_tokenizer
from vla_mot.hub.spec import SamplerConfig
from vla_mot.model.config import ModelConfig
from vla_mot.model.model import VlaMotModel
from vla_mot.robots.embodiment import Embodiment

FILES = sorted(path.relative_to(conf_dir()) for path in conf_dir().rglob("*.yaml"))


def content(file: Path) -> dict:
    plain = OmegaConf.to_container(OmegaConf.load(conf_dir() / file))
    assert isinstance(plain, dict)
    return plain


def read_training(name: str, *overrides: str) -> None:
    required = {"data.root": "somewhere", "output": "somewhere"} if name != "demo" else {}
    given = [f"{key}={value}" for key, value in required.items()]
    training_config(composed(name, *given, *overrides))


def check_model(name: str) -> None:
    config = training_config(composed("posttrain", "data.root=x", "output=x", f"model={name}"))
    assert ModelConfig.from_dict(config.model.to_dict()) == config.model
    with torch.device("meta"):
        VlaMotModel(config.model)


def check_backbone(file: Path) -> None:
    with torch.device("meta"):
        assert build_backbone(without(content(file), "weights")).geometry.num_layers > 0


def check_foresight(file: Path) -> None:
    if content(file)["type"] is None:
        return read_training("posttrain", f"foresight={file.stem}", "model.generation=null")
    options = without(content(file), "weights", "offset_frames", "offset_seconds", "history")
    assert build_tokenizer(options).latent_channels > 0


def without(options: dict, *keys: str) -> dict:
    return {key: value for key, value in options.items() if key not in keys}


def check_embodiment(file: Path) -> None:
    robot = section(Embodiment, "embodiment", content(file))
    assert robot.name == file.stem
    assert Embodiment.from_dict(robot.to_dict()) == robot


def skip_unless_drawable(file: Path) -> None:
    if file.stem == "metaworld":
        pytest.importorskip("metaworld")
        try:
            graphics.choose()
        except ConfigError as error:
            pytest.skip(str(error))


def check_env(file: Path) -> None:
    skip_unless_drawable(file)
    simulators.make_env(content(file))().close()


def check_noise(file: Path) -> None:
    skip_unless_drawable(file)
    env, noise = content(Path("env") / file.name), content(file)
    simulator, options = simulators.find(env)
    demonstration = next(simulator.demonstrate(options, noise, 0, 0.0))
    assert demonstration.frames


def check_experiment(name: str) -> None:
    if name.startswith("pretrain_"):
        return read_training("pretrain", f"experiment={name}")
    read_training("posttrain", f"experiment={name}")
    read_training("demo", f"experiment={name}")


def check_launcher(name: str) -> None:
    words = [f"hydra/launcher={name}", "output=runs/a"]
    with initialize_config_dir(str(conf_dir()), version_base="1.3"):
        launcher = compose("pretrain", words, return_hydra_config=True).hydra.launcher
    assert launcher.submitit_folder == "runs/a/launch/%j"
    assert launcher.tasks_per_node > 1 and launcher.timeout_min >= 60


def check_engine(name: str) -> None:
    found = composed("evaluate", "output=x", f"engine={name}")["engine"]
    assert (with_engine(tiny_policy(), found).engine is None) == (found["kind"] == "eager")


CHECKS = {
    "backbone": check_backbone,
    "data": lambda file: read_training("pretrain", f"data={file.stem}"),
    "embodiment": check_embodiment,
    "engine": lambda file: check_engine(file.stem),
    "env": check_env,
    "experiment": lambda file: check_experiment(file.stem),
    "foresight": check_foresight,
    "hydra": lambda file: check_launcher(file.stem),
    "model": lambda file: check_model(file.stem),
    "noise": check_noise,
    "sampler": lambda file: section(SamplerConfig, "sampler", content(file)),
    "scale": lambda file: read_training("demo", f"scale={file.stem}"),
    "train": lambda file: read_training("posttrain", f"train={file.stem}"),
}


@pytest.mark.parametrize("file", FILES, ids=str)
def test_file(file):
    if len(file.parts) == 1:
        composed(file.stem)
    else:
        CHECKS[file.parts[0]](file)


def test_the_papers_recipes_are_those_of_its_table():
    words = ("output=x", "data.root=x")
    before = training_config(composed("pretrain", "experiment=pretrain_a1_3b", *words)).train
    after = training_config(composed("posttrain", "model=a1_3b", *words)).train
    for train in (before, after):
        assert (train.optimizer, train.betas, train.eps, train.weight_decay) == (
            "adamw",
            (0.9, 0.95),
            1e-8,
            0.01,
        )
        assert (train.clip_norm, train.foresight_weight, train.action_draws) == (1.0, 0.01, 1)
    assert (before.batch_size, before.steps, before.schedule, before.lr) == (512, 700_000, "constant", 5e-5)
    assert (before.lr_final, before.warmup_steps, before.parallel.precision) == (5e-5, 0, "bf16")
    assert (after.batch_size, after.steps, after.schedule) == (128, 60_000, "cosine")
    assert (after.lr, after.lr_final, after.warmup_steps) == (5e-5, 5e-6, 2000)


def test_every_command_has_its_file():
    assert {command.config for command in COMMANDS} | {"command"} == {
        file.stem for file in FILES if len(file.parts) == 1
    }


def test_an_experiment_overrides_presets_and_the_command_line_overrides_it(tmp_path):
    plain = composed("posttrain", "experiment=conveyor", "train.steps=7", "data.root=x", "output=x")
    assert plain["train"]["steps"] == 7
    assert (
        plain["train"]["action_draws"] == content(Path("experiment/conveyor.yaml"))["train"]["action_draws"]
    )


@pytest.mark.parametrize("name", [file.stem for file in FILES if file.parts[0] == "experiment"])
def test_foresight_is_left_out_of_every_experiment_alike(name):
    command = "pretrain" if name.startswith("pretrain_") else "posttrain"
    words = ("model.generation=null", "foresight=none", "data.root=x", "output=x")
    model = training_config(composed(command, f"experiment={name}", *words)).model
    assert (model.generation, model.foresight) == (None, None)


def test_hydra_writes_nothing_of_its_own(tmp_path):
    with initialize_config_dir(str(conf_dir()), version_base="1.3"):
        for command in COMMANDS:
            hydra = compose(command.config, return_hydra_config=True).hydra
            assert (hydra.output_subdir, hydra.run.dir, hydra.job.chdir) == (None, ".", False)
