"""`vla-mot verify`: whether a checkpoint is whole and answers as it did when it was written."""

from dataclasses import dataclass
from typing import Any

from rich.table import Table
from rich.text import Text

from vla_mot.commands.console import console, show_library_log
from vla_mot.commands.devices import require_device
from vla_mot.commands.opening import Opening
from vla_mot.commands.settings import section
from vla_mot.errors import CheckpointError
from vla_mot.infer.verify import Check, verify

_MARKS = {
    True: Text("ok", style="green"),
    False: Text("FAILED", style="bold red"),
    None: Text("absent", style="dim"),
}


@dataclass(frozen=True)
class VerifyConfig(Opening):
    """See conf/verify.yaml."""

    device: str = "cpu"

    def __post_init__(self) -> None:
        require_device("device", self.device)


def run(config: dict[str, Any], overrides: list[str]) -> None:
    """The command. Raises CheckpointError when a check fails."""
    show_library_log()
    wanted = section(VerifyConfig, "", config)
    found = wanted.open()
    checks = list(verify(found, wanted.device))
    console.print(Text(str(found.folder), style="bold"))
    table = Table.grid(padding=(0, 3, 0, 0))
    for check in checks:
        table.add_row(_MARKS[check.passed], Text(check.name, style="cyan"), Text(check.text))
    console.print(table)
    if failed := [check for check in checks if check.passed is False]:
        raise CheckpointError(_sentence(found.folder.name, failed))


def _sentence(name: str, failed: list[Check]) -> str:
    return (
        f"{name} failed {len(failed)} of its checks ({', '.join(check.name for check in failed)}): do not run a robot "
        "with it; fetch or convert it again."
    )
