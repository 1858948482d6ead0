"""Keys by content, so that a moved or copied dataset keeps its cache and a changed one loses it."""

import hashlib
import os
from collections.abc import Iterable
from pathlib import Path
from typing import BinaryIO

_WHOLE = 16 * 2**20
"""Files up to this many bytes are hashed entirely."""
_BLOCKS, _BLOCK = 64, 2**16
"""Larger files: this many evenly spaced blocks of so many bytes, the first and the last among them."""


def file_digest(path: Path) -> str:
    """Hash a file's size and content; of a file over 16 MiB, its first, last and 62 blocks between.

    A video's frame sizes stand in its index, at the start or the end of the file, so another recording of equal
    size still gets another digest.
    """
    size = path.stat().st_size
    digest = hashlib.blake2b(str(size).encode(), digest_size=16)
    with path.open("rb") as file:
        for block in _blocks(file, size):
            digest.update(block)
    return digest.hexdigest()


def tree_digest(root: Path, files: Iterable[Path]) -> str:
    """Hash names (relative to `root`) and contents of files, whatever the order in which they come."""
    digest = hashlib.blake2b(digest_size=16)
    for path in sorted(files):
        digest.update(f"{path.relative_to(root).as_posix()}:{file_digest(path)}\n".encode())
    return digest.hexdigest()


_known: dict[bytes, str] = {}


def remembered_digest(root: Path, files: Iterable[Path]) -> str:
    """Return `tree_digest`, computed once by a process for files of the same names, sizes and times of change."""
    files = sorted(files)
    seen = hashlib.blake2b(os.fsencode(root.absolute()), digest_size=16)
    for path in files:
        status = path.stat()
        seen.update(f"{path.relative_to(root).as_posix()}:{status.st_size}:{status.st_mtime_ns}\n".encode())
    key = seen.digest()
    if key not in _known:
        _known[key] = tree_digest(root, files)
    return _known[key]


def _blocks(file: BinaryIO, size: int) -> Iterable[bytes]:
    if size <= _WHOLE:
        yield file.read()
        return
    for i in range(_BLOCKS):
        file.seek((size - _BLOCK) * i // (_BLOCKS - 1))
        yield file.read(_BLOCK)
