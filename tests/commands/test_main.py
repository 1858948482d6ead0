import os
import subprocess
import sys
from functools import reduce

import pytest
import torch
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf, open_dict

from vla_mot.commands.manual import COMMANDS
from vla_mot.conf_dir import conf_dir
from vla_mot.version import __version__

VLA_MOT = [sys.executable, "-m", "vla_mot.commands.main"]


def run(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*VLA_MOT, *arguments], capture_output=True, text=True, env=os.environ | environment
    )


def test_help_lists_every_command(vla_mot):
    for arguments in (["--help"], ["-h"], []):
        said = vla_mot(*arguments)
        assert said.code == 0
        for command in COMMANDS:
            assert f"{command.name} " in said.out
            assert command.summary in said.out


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command.name)
def test_help_of_a_command(vla_mot, command):
    said = vla_mot(*command.name.split(), "--help")
    assert said.code == 0
    assert f"vla-mot {command.name} [key=value …]" in said.out
    for key, _, _ in command.keys:
        assert key in said.out
    for example in command.examples:
        assert example in said.out
    for heading in ("Examples", "Exit codes", "Options", f"conf/{command.config}.yaml"):
        assert heading in said.out
    assert "Powered by Hydra" not in said.out


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command.name)
def test_the_defaults_of_the_help_are_those_of_the_configuration(command):
    with initialize_config_dir(str(conf_dir()), version_base="1.3"):
        config = compose(command.config, return_hydra_config=True)
    presets = OmegaConf.to_container(config.hydra.runtime.choices)
    with open_dict(config):
        del config["hydra"]
    values = OmegaConf.to_container(config, resolve=command.name == "demo")
    for key, told, _ in command.keys:
        own = reduce(lambda node, part: node.get(part, {}), key.split("."), values)
        default = presets.get(key, own)
        written = {"None": "null", "???": "required", "False": "false", "True": "true"}.get(
            str(default), str(default)
        )
        assert written.startswith(told.removesuffix("…")) if told.endswith("…") else written == told, key


def test_a_group_lists_its_commands(vla_mot):
    said = vla_mot("data")
    assert said.code == 0
    assert "data record" in said.out
    assert "posttrain" not in said.out


def test_version(vla_mot):
    assert vla_mot("--version").out == f"vla-mot {__version__}\n"


def test_help_loads_nothing_heavy():
    code = (
        "import sys; from vla_mot.commands.main import main; main(['--help']); main(['posttrain', '--help']); "
        "print(sorted({'torch', 'numpy', 'lerobot', 'hydra', 'transformers'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.splitlines()[-1] == "[]"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("posttrian",), "unknown command 'posttrian'. Did you mean 'posttrain'?"),
        (("data", "recrd"), "unknown command 'data recrd'. Did you mean 'data record'?"),
        (("posttrain", "train.stpes=3"), "unknown key 'train.stpes'. Did you mean 'train.steps'?"),
        (("posttrain", "trian.steps=3"), "Did you mean 'train.steps'?"),
        (("posttrain", "steps=3"), "Did you mean 'train.steps'?"),
        (
            ("posttrain", "experiment=conveyer"),
            "unknown experiment preset 'conveyer'. Did you mean 'conveyor'?",
        ),
        (("posttrain", "model=tinny"), "unknown model preset 'tinny'. Did you mean 'tiny'?"),
        (("data", "record", "env=conveyer"), "unknown env preset 'conveyer'. Did you mean 'conveyor'?"),
        (("data", "record", "noise.tremr=1"), "Did you mean 'noise.tremor'?"),
        (("posttrain", "train.steps"), "'train.steps' is no key=value"),
        (("posttrain", "--stpes"), "unrecognized arguments: --stpes"),
        (("posttrain", "train.seed=1,2"), "add --multirun"),
        (("posttrain", "--config-dir", "/nowhere"), "--config-dir /nowhere is no folder"),
        (("posttrain", "data.root=x"), "output must be given"),
        (("posttrain", "output=x"), "data.root must be given"),
        (
            ("posttrain", "data.root=x", "output=x", "train.lr=fast"),
            "train.lr: expected a number",
        ),
        (("posttrain", "+trian.steps=5"), "unknown key 'trian.steps'. Did you mean 'train.steps'?"),
        (("posttrain", "+trian.steps=5,6", "--multirun"), "Did you mean 'train.steps'?"),
        (("posttrain", "++surprise=1"), "unknown key 'surprise'."),
        (
            ("posttrain", "data.root=x", "output=x", "+train.stpes=5"),
            "unknown key 'train.stpes'. Did you mean",
        ),
        (("report",), "run must be given"),
        (("info",), "checkpoint must be given"),
        (("evaluate",), "output must be given"),
    ],
)
def test_a_mistake_gets_a_sentence_and_exit_code_2(vla_mot, arguments, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    said = vla_mot(*arguments)
    assert said.code == 2
    assert message in said.err
    assert "Traceback" not in said.err
    assert list(tmp_path.iterdir()) == []


def test_a_traceback_on_request(vla_mot, monkeypatch):
    monkeypatch.setenv("VLA_MOT_TRACEBACK", "1")
    assert "Traceback" in vla_mot("posttrain", "data.root=x").err


def test_a_users_own_presets(vla_mot, tmp_path):
    (tmp_path / "train").mkdir()
    (tmp_path / "train" / "mine.yaml").write_text("defaults: [posttrain]\nsteps: 77\n")
    shown = vla_mot("posttrain", "train=mine", "--config-dir", tmp_path, "--cfg", "job")
    assert shown.code == 0
    assert "steps: 77" in shown.out
    assert "Did you mean 'mine'" in vla_mot("posttrain", "train=mime", "--config-dir", tmp_path).err


@pytest.mark.parametrize("name", ["für=mich, (1)", "it's #1 [a] {b}", "a:b 50%"])
def test_a_users_presets_in_a_folder_of_any_name(vla_mot, tmp_path, name):
    mine = tmp_path / name / "train" / "mine.yaml"
    mine.parent.mkdir(parents=True)
    mine.write_text("defaults: [posttrain]\nsteps: 77\n")
    shown = vla_mot("posttrain", "train=mine", "--config-dir", tmp_path / name, "--cfg", "job")
    assert (shown.code, shown.err) == (0, "")
    assert "steps: 77" in shown.out


@pytest.mark.parametrize(
    ("words", "module", "advice"),
    [
        (("posttrain", "data.root=x", "output=x"), "posttrain", "train.parallel.micro_batch=1"),
        (("info", "checkpoint=x"), "info", "Smaller batches or a narrower dtype"),
    ],
)
def test_a_full_device_is_no_defect(vla_mot, monkeypatch, words, module, advice):
    def run(config, overrides):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB.")

    monkeypatch.setattr(f"vla_mot.commands.{module}.run", run)
    said = vla_mot(*words)
    assert said.code == 1
    assert said.err.startswith("error: CUDA out of memory. Tried to allocate 20.00 GiB.")
    assert advice in said.err
    assert "defect" not in said.err and "Traceback" not in said.err


@pytest.mark.parametrize("words", [["experiment=mine"], ["experiment=mine,conveyor", "--multirun"]])
def test_a_users_preset_with_a_key_that_the_command_does_not_have(vla_mot, tmp_path, words):
    (tmp_path / "experiment").mkdir()
    mine = "# @package _global_\ndefaults: [conveyor]\ntrian: {steps: 3}\n"
    (tmp_path / "experiment" / "mine.yaml").write_text(mine)
    said = vla_mot("posttrain", *words, "--config-dir", tmp_path, "data.root=x", f"output={tmp_path / 'out'}")
    assert said.code == 2
    assert "unknown key 'trian'. Did you mean 'train'?" in said.err
    assert not (tmp_path / "out").exists()


def test_the_exit_code_reaches_the_shell():
    done = run("posttrain", "experiment=conveyer")
    assert done.returncode == 2
    assert done.stdout == ""
