"""A released checkpoint as LeRobot's commands want to find it: with processor files beside the weights."""

import atexit
import shutil
import tempfile
from pathlib import Path

from vla_mot.errors import ConfigError
from vla_mot.hub.files import write_json
from vla_mot.hub.lerobot_processors import PROCESSOR_FILES


def with_processor_files(folder: Path) -> Path:
    """Return a folder that holds everything in `folder` and the processor files that it lacks.

    Given a pretrained path, LeRobot reads the processors from files there and nowhere else. The authors published
    none, and neither a user's folder nor the Hub's cache is ours to write to: so the answer is a temporary folder
    of links, which goes when the process ends; or `folder` itself, if it lacks nothing.

    Raises ConfigError where the system allows no links.
    """
    lacking = [name for name in PROCESSOR_FILES if not (folder / name).is_file()]
    if not lacking:
        return folder
    linked = Path(tempfile.mkdtemp(prefix="vla_mot-released-"))
    atexit.register(shutil.rmtree, linked, ignore_errors=True)
    try:
        for entry in folder.iterdir():
            if entry.name not in lacking:
                (linked / entry.name).symlink_to(entry.resolve())
    except OSError as error:
        raise ConfigError(
            f"{folder} has no processor files, which LeRobot asks for, and links to its files cannot be made in "
            f"{linked} ({error}). Run `vla-mot convert checkpoint={folder} output=…` and open what it writes."
        ) from error
    for name in lacking:
        write_json(linked / name, PROCESSOR_FILES[name])
    return linked
