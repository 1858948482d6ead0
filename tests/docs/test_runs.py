"""Every command on the pages is run by a test, or it is said why not; those marked `here` are run in this file.

A page is followed from top to bottom, in one folder for all: files that it shows are written, Python is run, commands
are run with fewer episodes and steps.
"""

import importlib
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.data.v21 import write_legacy
from tests.docs.pages import ROOT, Block, Command, all_blocks, all_commands, blocks_of, commands_of
from tests.docs.runs import COMPOSED, EXEC, FILE, HERE, NAMES, TOLD, python_of, rule_of
from vla_mot.commands.main import main

ORDER = (
    "quickstart",
    "add_dataset",
    "add_tokenizer",
    "add_backbone",
    "add_sampler",
    "deploy",
    "robots",
    "statistics",
)
FOLLOWED = [*(ROOT / "docs" / f"{name}.md" for name in (*ORDER, "training_log")), ROOT / "README.md"]
FEWER = {
    "data record": ("episodes=4",),
    "posttrain": (
        "train.steps=2",
        "train.batch_size=4",
        "train.warmup_steps=1",
        "train.val_every=2",
        "train.save_every=2",
        "train.val_samples=4",
        "train.val_open_loop=2",
        "train.val_pictures=1",
        "train.log.utilisation=false",
    ),
    "evaluate": ("episodes=2", "parallel=2", "videos=0"),
    "data stats": ("jobs=1",),
}
FEWER["pretrain"] = FEWER["posttrain"]


def test_every_command_is_run_somewhere_or_it_is_said_why_not():
    lost = [str(command) for command in all_commands() if command.fenced and rule_of(command) is None]
    assert not lost, f"say in {FILE} where these are run:\n" + "\n".join(lost)
    lost = [f"{block.page}:{block.line}" for block, verdict in python_of(all_blocks()) if verdict is None]
    assert not lost, f"say in {FILE} where these blocks of Python are run: {lost}"


def test_what_is_said_is_there():
    """Tests exist, patterns fit something, pages that are followed here are those that say so."""
    verdicts = [rule[1] for rules in TOLD["commands"].values() for rule in rules]
    verdicts += [verdict for told in TOLD["python"].values() for verdict in told]
    for verdict in verdicts:
        assert (
            verdict in (HERE, EXEC) or verdict.startswith((COMPOSED, NAMES)) or (ROOT / verdict).exists()
        ), verdict
    shown = [command for command in all_commands() if command.fenced]
    used = [(command.page, *rule) for command in shown if (rule := rule_of(command))]
    for page, rules in TOLD["commands"].items():
        for rule in rules if (ROOT / page).exists() else ():
            assert (page, *rule) in used, f"{FILE.name}: {page}: {rule} fits nothing that comes to it"
    here = [command for command in shown if (rule_of(command) or ["", ""])[1] == HERE]
    assert [str(command) for command in here if command.program != "vla-mot"] == []
    assert {command.page for command in here} == {page.relative_to(ROOT).as_posix() for page in FOLLOWED}


@pytest.fixture(scope="module")
def world(three_datasets, tmp_path_factory) -> Iterator[Path]:
    """The folder in which the pages are followed, with what they take as given."""
    folder = tmp_path_factory.mktemp("world")
    for given, there in {
        "data/three": three_datasets,
        "outputs/data": three_datasets,
        "outputs/conveyor": three_datasets / "conveyor",
        "datasets/mine": three_datasets / "conveyor",
    }.items():
        (folder / given).parent.mkdir(parents=True, exist_ok=True)
        (folder / given).symlink_to(there)
    write_legacy(folder / "datasets" / "old")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for package in ("backbones", "foresight"):  # where a page adds a file to the source
            module = importlib.import_module(f"vla_mot.{package}")
            patch.setattr(module, "__path__", [*module.__path__, str(folder / "src" / "vla_mot" / package)])
        yield folder


@pytest.fixture(scope="module")
def done() -> set[tuple[str, ...]]:
    """Commands that were run before: several pages show the same."""
    return set()


@pytest.mark.slow
@pytest.mark.sim
@pytest.mark.parametrize("page", FOLLOWED, ids=lambda page: page.stem)
def test_a_page_is_followed(page, world, done):
    commands = [c for c in commands_of(page) if c.fenced and rule_of(c)[1] == HERE and c.words not in done]
    verdicts = dict(python_of(list(blocks_of(page))))
    steps: list[Block | Command] = [
        block for block in blocks_of(page) if block.title or verdicts.get(block) == HERE
    ]
    for step in sorted([*steps, *commands], key=lambda step: step.line):
        if isinstance(step, Command):
            code = main(shortened(step, world))
            assert code == 0, step
            done.add(step.words)
        elif step.title:
            (world / step.title).parent.mkdir(parents=True, exist_ok=True)
            (world / step.title).write_text(step.text)
        else:
            exec(compile(step.text, f"{step.page}:{step.line}", "exec"), {"__name__": "page"})


def shortened(command: Command, world: Path) -> list[str]:
    """The words for `main`: the page's own, but for sizes, and with presets that the page adds to conf/."""
    words = list(command.words[1:])
    name = next((name for name in sorted(FEWER, key=len) if words[: len(name.split())] == name.split()), "")
    fewer = () if any(word.startswith("resume=") for word in words) else FEWER.get(name, ())
    given = {word.partition("=")[0] for word in fewer}
    words = [word for word in words if word.partition("=")[0] not in given]
    own = ["--config-dir", str(world / "conf")] if _added(words, world) else []
    return [*words, *fewer, *own]


def _added(words: list[str], world: Path) -> bool:
    chosen = (re.fullmatch(r"([a-z]+)=(\w+)", word) for word in words)
    return any((world / "conf" / found[1] / f"{found[2]}.yaml").is_file() for found in chosen if found)
