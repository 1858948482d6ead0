"""A checkpoint's folder changes as a whole: what is written appears when all of it is there; nothing old remains."""

import os
import shutil
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from vla_mot.errors import CheckpointError
from vla_mot.hub.manifest import MANIFEST_FILE


@contextmanager
def replaced(folder: Path, ours: Sequence[str]) -> Iterator[Path]:
    """Give a temporary folder whose content stands in `folder` when the block ends well, and is removed otherwise.

    A new folder appears at once. In an old one, what is written takes the place of everything that matches `ours`
    (patterns of names), and other files stay; its manifest goes first, so that an interruption does not pass for a
    checkpoint. Raises CheckpointError for a path that is a file.
    """
    target = folder.resolve()
    if target.exists() and not target.is_dir():
        raise CheckpointError(f"{folder} is a file; a checkpoint is a folder.")
    old = target.is_dir()
    name = f".{target.name}.{uuid.uuid4().hex[:8]}"
    unfinished = target / name if old else target.with_name(name)
    unfinished.mkdir(parents=True)
    try:
        yield unfinished
        if old:
            _exchange(unfinished, target, ours)
        else:
            unfinished.rename(target)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


def _exchange(new: Path, target: Path, ours: Sequence[str]) -> None:
    (target / MANIFEST_FILE).unlink(missing_ok=True)
    stale = {path for pattern in ours for path in target.glob(pattern)}
    for path in stale | {target / path.name for path in new.iterdir()}:
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)
    for path in new.iterdir():
        os.replace(path, target / path.name)
