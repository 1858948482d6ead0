"""`vla-mot data convert`: a LeRobot v2.1 dataset as a new v3.0 one."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vla_mot.commands import folders
from vla_mot.commands.console import console, show_library_log
from vla_mot.commands.settings import section
from vla_mot.errors import ConfigError


@dataclass(frozen=True)
class ConvertDatasetConfig:
    """See conf/convert_dataset.yaml."""

    root: Path
    output: Path

    def __post_init__(self) -> None:
        inside = self.output.resolve()
        if self.root.resolve() in (inside, *inside.parents):
            raise ConfigError(
                f"output {self.output} lies in {self.root}, which is to stay as it is; choose another."
            )


def run(config: dict[str, Any], overrides: list[str]) -> None:
    """The command."""
    show_library_log()
    settings = section(ConvertDatasetConfig, "", config)
    from vla_mot.data.legacy import convert_legacy

    folders.require_unused(settings.output)
    if settings.output.is_dir():
        settings.output.rmdir()
    with folders.nothing_kept(settings.output):
        made = convert_legacy(settings.root, settings.output)
    seen = f"pictures of {', '.join(made.cameras)}" if made.cameras else "no pictures, since it has no videos"
    console.print(f"converted {made.episodes} episodes, {made.frames:,} frames at {made.fps:g} fps")
    console.print(f"compared with the old dataset: lengths of episodes, {seen}")
    console.print(f"dataset: {settings.output}")
