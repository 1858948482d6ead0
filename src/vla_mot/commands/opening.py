"""How `info`, `verify` and `convert` name the checkpoint that they open."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from vla_mot.commands.repositories import locate
from vla_mot.errors import ConfigError
from vla_mot.hub.checkpoint import Checkpoint, open_checkpoint


@dataclass(frozen=True)
class Opening:
    """checkpoint: a path or a Hub repository. The rest as in conf/info.yaml."""

    checkpoint: str
    revision: str | None = None
    action_mode: str | None = None
    architecture: Path | None = None

    def open(self) -> Checkpoint:
        """Read configuration and headers. Raises CheckpointError or ConfigError for what does not fit."""
        return open_checkpoint(
            locate(self.checkpoint),
            revision=self.revision,
            action_mode=self.action_mode,
            architecture=_read_architecture(self.architecture),
        )


def _read_architecture(path: Path | None) -> dict[str, Any] | None:
    if path is None:
        return None
    try:
        content = yaml.safe_load(path.read_text())
    except OSError as error:
        raise ConfigError(f"architecture={path} cannot be read: {error}") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"architecture={path} is no YAML: {error}") from error
    if not isinstance(content, dict):
        raise ConfigError(f"architecture={path} must hold model options such as `backbone: {{…}}`.")
    return content
