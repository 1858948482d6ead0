"""How `info`, `verify` and `convert` name the checkpoint that they open."""

from dataclasses import dataclass
from pathlib import Path

from vla_mot.commands.repositories import locate
from vla_mot.hub.checkpoint import Checkpoint, open_checkpoint


@dataclass(frozen=True)
class Opening:
    """checkpoint: a path or a Hub repository. The rest as in conf/info.yaml."""

    checkpoint: str
    revision: str | None = None
    action_mode: str | None = None
    architecture: Path | None = None
    embodiments: tuple[Path, ...] = ()

    def open(self) -> Checkpoint:
        """Read configuration and headers. Raises CheckpointError or ConfigError for what does not fit."""
        return open_checkpoint(
            locate(self.checkpoint),
            revision=self.revision,
            action_mode=self.action_mode,
            architecture=self.architecture,
            embodiments=self.embodiments,
        )
