"""`vla-mot pretrain`: one policy on a mixture of LeRobot datasets of several robots, and of people."""

from typing import Any

from vla_mot.commands import runs


def run(config: dict[str, Any], overrides: list[str]) -> None:
    """The command."""
    runs.run("pretrain", config, overrides)
