"""`vla-mot posttrain`: one policy on one LeRobot dataset; new, resumed, or from a policy's weights."""

from typing import Any

from vla_mot.commands import runs


def run(config: dict[str, Any], overrides: list[str]) -> None:
    """The command."""
    runs.run("posttrain", config, overrides)
