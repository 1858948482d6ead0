"""Stages of a chain that is resumable: what is finished and fits its configuration is not done again.

    <root>/stages/<name>.json   {"fingerprint": …, "finished": …, "seconds": …, "peak_mib": …}

A stage's fingerprint covers its own settings, those of the stages that it builds on, and vla_mot's version.
"""

import hashlib
import json
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vla_mot.commands.console import clock, console
from vla_mot.commands.folders import read_facts, write_facts
from vla_mot.errors import ConfigError
from vla_mot.train.pace import peak_memory
from vla_mot.version import __version__

FOLDER = "stages"


@dataclass(frozen=True)
class Stage:
    """One part of the chain.

    name: short. title: for people. settings: plain values that decide its result. outputs: what it writes, removed
    before it is done afresh. work: does it. continues: its unfinished outputs are kept, `work` goes on with them.
    """

    name: str
    title: str
    settings: Any
    outputs: Sequence[Path]
    work: Callable[[], None]
    continues: bool = False


class Stages:
    """Runs stages in order below `root`. Raises ConfigError when `root` holds something else."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.seconds: dict[str, float] = {}
        self.peak_mib = 0.0
        self._fingerprint = __version__
        if root.exists() and not (root / FOLDER).is_dir() and any(root.iterdir()):
            raise ConfigError(
                f"output folder {root} is already used by something else; choose another output=…."
            )

    def run(self, stage: Stage, number: str) -> None:
        """Do a stage, or say that it is done already. number: for people, like `2/5`."""
        self._fingerprint = fingerprint(self._fingerprint, stage.settings)
        path = self.root / FOLDER / f"{stage.name}.json"
        facts = read_facts(path) or {}
        spent = float(facts.get("seconds", 0.0))
        self.peak_mib = max(self.peak_mib, float(facts.get("peak_mib", 0.0)))
        same = facts.get("fingerprint") == self._fingerprint
        if same and facts.get("finished") and all(output.exists() for output in stage.outputs):
            console.print(f"[bold]{number} {stage.title}[/bold]: done before, in {clock(spent)}")
            self.seconds[stage.name] = spent
            return
        console.print(f"[bold]{number} {stage.title}[/bold]")
        if not (same and stage.continues and not facts.get("finished")):
            spent = 0.0
            self._clear(stage)
        self.seconds[stage.name] = self._timed(stage, path, spent)

    def _clear(self, stage: Stage) -> None:
        for output in stage.outputs:
            if output.is_dir() and not output.is_symlink():
                shutil.rmtree(output)
            else:
                output.unlink(missing_ok=True)

    def _timed(self, stage: Stage, path: Path, spent: float) -> float:
        """Do the work; the time spent is kept even when it is interrupted."""
        facts: dict[str, Any] = {"fingerprint": self._fingerprint, "finished": False, "seconds": spent}
        write_facts(path, facts)
        started = time.perf_counter()
        try:
            stage.work()
            facts["finished"] = True
        finally:
            facts["seconds"] = spent + time.perf_counter() - started
            self.peak_mib = facts["peak_mib"] = max(self.peak_mib, peak_memory_mib())
            write_facts(path, facts)
        return float(facts["seconds"])


def fingerprint(before: str, settings: Any) -> str:
    """A hash of plain settings and of what they build on."""
    text = json.dumps([before, settings], sort_keys=True, default=str)
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


def peak_memory_mib() -> float:
    """The largest resident memory of this process so far, in MiB."""
    return peak_memory("cpu") * 1024
