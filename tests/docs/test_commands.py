"""Every command that a page shows means something: its configuration composes, its options exist.

Nothing is run here, so a misspelt key anywhere in the pages fails within seconds. What is run, and where, is told in
runs.yaml; see test_runs.py.
"""

import re
import tomllib
from functools import lru_cache
from pathlib import Path
from typing import Any

import draccus
import pytest
import yaml
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from tests.docs.pages import ROOT, Command, all_blocks, all_commands
from vla_mot.commands.hydra_app import spelled_out
from vla_mot.commands.manual import COMMANDS
from vla_mot.commands.training_settings import training_config
from vla_mot.conf_dir import conf_dir

SHOWN = list({command.words: command for command in reversed(all_commands())}.values())[::-1]
OURS = [command for command in SHOWN if command.program == "vla-mot" and command.words[1:]]
LEROBOTS = [
    command
    for command in SHOWN
    if command.program.startswith("lerobot-") and any("=" in word for word in command.words)
]
SCRIPTS = [command for command in SHOWN if command.program == "python" and "/" in command.words[1]]
FOREIGN = ("script/eval_policy.py",)
"""Scripts of other projects."""
PASSES_ON = {"tools/latency_table.py": ["evaluate"]}
"""Scripts whose words are also those of a command."""
SWITCHES = ("--multirun", "--resolve", "--help")
OVERVIEWS = ("--help", "--version")


@pytest.fixture(scope="session")
def presets(tmp_path_factory) -> Path:
    """The folder of `--config-dir`, with every preset that a page writes into one or into conf/."""
    folder = tmp_path_factory.mktemp("presets")
    for block in all_blocks():
        place = re.fullmatch(r"(?:my_conf|conf|robots)/(.+\.yaml)", block.title)
        if place:
            inside = place[1] if "/" in place[1] else f"embodiment/{place[1]}"
            (folder / inside).parent.mkdir(parents=True, exist_ok=True)
            (folder / inside).write_text(block.text)
    return folder


def parts(command: Command) -> tuple[Any, list[str]]:
    """The command, and its overrides for Hydra."""
    words = list(command.words[1:])
    fitting = [c for c in COMMANDS if words[: len(c.name.split())] == c.name.split()]
    assert fitting, f"{command}: no such command"
    ours = max(fitting, key=lambda c: len(c.name))
    rest = words[len(ours.name.split()) :]
    if "--config-dir" in rest:
        at = rest.index("--config-dir")
        rest = rest[:at] + rest[at + 2 :]
    return ours, [spelled_out(ours, word) for word in rest if word not in SWITCHES]


@pytest.mark.parametrize("command", OURS, ids=str)
def test_a_command_of_ours_composes(command, presets):
    """Hydra itself refuses unknown keys, groups and presets; what trains becomes what the library takes."""
    if command.words[1] in OVERVIEWS:
        return
    ours, overrides = parts(command)
    if not overrides and not command.fenced:
        return
    with initialize_config_dir(str(conf_dir()), version_base="1.3"):
        config = compose(ours.config, [*overrides, f"hydra.searchpath=[file://{presets}]"])
    missing = OmegaConf.missing_keys(config)
    if command.fenced and command.whole and "resume=" not in command.text:
        needless = {"data.root", "output"} if "dry_run=true" in command.text else set()
        assert missing <= needless, f"{command}: needs {', '.join(sorted(missing))}"
    if ours.name in ("posttrain", "pretrain"):
        for key in missing:
            OmegaConf.update(config, key, "x")
        config.train.device = "cpu"  # there may be no other here
        training_config(OmegaConf.to_container(config, resolve=True))


NEEDED = {
    "lerobot-eval": ["--env.type=pusht"],
    "lerobot-train": ["--dataset.repo_id=x/y"],
    "lerobot-rollout": ["--robot.type=so100_follower", "--robot.port=x"],
}
"""What each of LeRobot's commands asks for, where a page leaves it out."""


@lru_cache
def lerobots(program: str) -> type:
    """The configuration that one of LeRobot's commands takes."""
    import vla_mot.policy  # noqa: F401  LeRobot learns our types

    match program:
        case "lerobot-eval":
            from lerobot.configs.eval import EvalPipelineConfig as Config

            import lerobot_env_conveyor  # noqa: F401
        case "lerobot-train":
            from lerobot.configs.train import TrainPipelineConfig as Config
        case "lerobot-rollout":
            import lerobot.cameras.opencv
            import lerobot.robots.so_follower  # noqa: F401
            from lerobot.rollout.configs import RolloutConfig as Config
    return Config


@pytest.mark.parametrize("command", LEROBOTS, ids=str)
def test_a_command_of_lerobot_has_these_options(command, tmp_path, monkeypatch):
    """As lerobot parses it, with the type in place of a checkpoint that is not there."""
    monkeypatch.chdir(tmp_path)
    options = [word for word in command.words[1:] if word.startswith("--")]
    given = []
    for word in options:
        key, _, value = word.partition("=")
        if key == "--policy.path":
            key, value = "--policy.type", "qwena1" if value.startswith("InternRobotics") else "vla_mot"
        if key not in ("--config_path", "--resume"):  # of a run that is not there
            given.append(f"{key}={value or 'x'}")
    if not any(word.startswith(("--policy.path", "--policy.type")) for word in options):
        given.append("--policy.type=vla_mot")
    needed, *also = NEEDED[command.program]
    if needed.partition("=")[0] not in command.text:
        given += [needed, *also]
    parsed = draccus.parse(lerobots(command.program), args=given)
    if "--robot.type" in command.text:
        assert parsed.robot.cameras, "LeRobot lets an arm without cameras begin, and the policy then refuses"


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ("vla-mot evaluate checkpoint=a output=b epsiodes=3", "epsiodes"),
        ("vla-mot posttrain model=tinny data.root=a output=b", "tinny"),
        ("vla-mot posttrain train.parallel.precision=bf61 data.root=a output=b", "bf61"),
        ("vla-mot info", "needs checkpoint"),
        ("vla-mot evalute checkpoint=a output=b", "no such command"),
        ("lerobot-eval --env.type=pusht --policy.path=a --policy.num_step=3", "num_step"),
        ("lerobot-eval --env.type=pushed --policy.path=a", "pushed"),
    ],
)
def test_what_is_misspelt_is_found(words, told, presets, tmp_path, monkeypatch, capsys):
    command = Command("page.md", 1, tuple(words.split()), words)
    with pytest.raises((Exception, SystemExit)) as found:
        if command.program == "vla-mot":
            test_a_command_of_ours_composes(command, presets)
        else:
            test_a_command_of_lerobot_has_these_options(command, tmp_path, monkeypatch)
    assert told in f"{found.value} {capsys.readouterr().err}"


@pytest.mark.parametrize("command", SCRIPTS, ids=str)
def test_a_script_is_there_and_knows_its_words(command):
    script = ROOT / command.words[1]
    if command.words[1] in FOREIGN:
        assert not script.exists()
        return
    assert script.is_file(), command
    family = [script, *script.parent.rglob("*.py")] if script.parent.name == "benchmarks" else [script]
    family += [conf_dir() / f"{name}.yaml" for name in PASSES_ON.get(command.words[1], ())]
    source = "\n".join(path.read_text() for path in family)
    for key in (word.partition("=")[0] for word in command.words[2:] if "=" in word):
        assert re.search(rf"\b{re.escape(key)}\b", source), f"{command}: {key}"


def test_targets_and_extras_are_there():
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE))
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    for command in SHOWN:
        if command.program == "make" and len(command.words) > 1:
            assert command.words[1] in targets, command
        if command.program == "pip":
            for named in re.findall(r"(?:^|vla[-_]mot|\.)\[([\w,-]+)\]", " ".join(command.words[2:])):
                assert set(named.split(",")) <= extras.keys(), command
            for folder in re.findall(r"\./packages/\w+", command.text):
                assert (ROOT / folder / "pyproject.toml").is_file(), command
    page = (ROOT / "docs" / "install.md").read_text()
    assert [extra for extra in extras if f"`{extra}`" not in page] == [], (
        "extras that docs/install.md leaves out"
    )


def test_yaml_on_the_pages_is_yaml():
    for block in all_blocks():
        if block.language == "yaml":
            assert yaml.safe_load(block.text), f"{block.page}:{block.line}"
