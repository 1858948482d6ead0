"""What runs.yaml says of a command or a block of Python."""

from fnmatch import fnmatchcase
from pathlib import Path

import yaml

from tests.docs.pages import Block, Command

FILE = Path(__file__).with_name("runs.yaml")
TOLD = yaml.safe_load(FILE.read_text())
HERE, EXEC, COMPOSED, NAMES = "here", "exec", "composed: ", "names: "


def rule_of(command: Command) -> list[str] | None:
    """[pattern, verdict], or None where nothing fits."""
    rules = TOLD["commands"].get(command.page, [])
    return next((rule for rule in rules if fnmatchcase(command.text, rule[0])), None)


def python_of(blocks: list[Block]) -> list[tuple[Block, str | None]]:
    """Blocks of Python with their verdicts, in order; None where there is none."""
    seen: dict[str, int] = {}
    found = []
    for block in blocks:
        if block.language == "python":
            told = TOLD["python"].get(block.page, [])
            place = seen[block.page] = seen.get(block.page, -1) + 1
            found.append((block, told[place] if place < len(told) else None))
    return found
