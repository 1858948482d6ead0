"""Room for caches in one folder: how much all of them may take, which are in use, and which give way.

A process that uses a cache writes its key into a lease: a file in the folder that it keeps locked as long as it, or a
process forked from it, lives. Whoever makes room takes the caches that were used longest ago, and none that stands in a
living lease: two runs that share a folder never build the same cache again and again in turn. A lease costs one
descriptor per process and folder. It goes when its process ends; what a killed one left is removed by the next that
looks, on the same host: many shared disks keep locks to the machine that took them, so that the lease of another host
says nothing of whether anybody lives there.
"""

import fcntl
import json
import logging
import os
import re
import shutil
import socket
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from multiprocessing.util import Finalize
from pathlib import Path

from huggingface_hub.utils import WeakFileLock

from vla_mot.errors import DatasetError

log = logging.getLogger(__name__)

MANIFEST = "manifest.json"
GIB = 2**30
_PLACE = re.compile(r"[0-9a-f]{24}")
_UNFINISHED = re.compile(r"\.([0-9a-f]{24})\.(building|evicted)-[0-9a-f]{8}")
"""Only folders of these names are ours: a user may point at any folder."""
_NAMED = 3  # hosts that a message lists


class NoRoomError(DatasetError):
    """A cache that fits neither the disk nor the folder's limit."""


@contextmanager
def folder_lock(folder: Path) -> Iterator[None]:
    """Inside, no other process leases, reserves or evicts in this folder. Held for moments only."""
    with WeakFileLock(folder / "folder.lock"):
        yield


def use(folder: Path, key: str) -> None:
    """Keep a cache, there or about to be built, from giving way while this process lives.

    A folder that cannot be written to is left as it is: nobody can evict there.
    """
    home = folder.absolute()
    if home in _leases and key in _leases[home].keys:
        return
    try:
        with folder_lock(folder):
            if home not in _leases:
                _leases[home] = _Lease(home)
            _leases[home].add(key)
    except OSError as error:
        log.debug("caches in %s are used without a lease: %s", folder, error)


def touch(place: Path) -> None:
    """Record that a cache was used just now."""
    try:
        os.utime(place / MANIFEST)
    except OSError as error:
        log.debug("the use of %s cannot be recorded: %s", place, error)


def make_room(folder: Path, need: int, limit: int | None, what: str) -> None:
    """Evict until `need` bytes fit under the limit and on the disk; nothing is evicted without a limit, or in vain.

    limit: bytes that all caches in the folder may take together. what: names the new one in messages. Called
    inside `folder_lock`. Raises NoRoomError where it does not fit.
    """
    kept = _in_use(folder)
    caches = list(_caches(folder, kept))
    taken = sum(cache.bytes for cache in caches)
    free = shutil.disk_usage(folder).free - sum(cache.promised for cache in caches)
    idle = sorted((c for c in caches if c.key not in kept), key=lambda c: c.used) if limit is not None else []
    gain = sum(cache.bytes for cache in idle)
    if free + gain < need:
        raise NoRoomError(no_space(folder, need, what, free))
    if limit is not None and taken - gain + need > limit:
        raise NoRoomError(
            f"{what} needs {_size(need)}; of the limit of {_size(limit)} for {folder}, {_size(taken - gain)} are taken "
            f"by caches in use. Raise the limit, or choose another cache folder.{_other_hosts(folder)}"
        )
    for cache in idle:
        if free >= need and (limit is None or taken + need <= limit):
            return
        cache.evict(what)
        taken, free = taken - cache.bytes, free + cache.bytes


def no_space(folder: Path, need: int, what: str, free: int | None = None) -> str:
    """The message for a full disk."""
    free = shutil.disk_usage(folder).free if free is None else free
    return (
        f"{what} needs {_size(need)} in {folder}, where {_size(max(free, 0))} are free. "
        "Free some space, or choose another cache folder."
    )


def _size(count: int) -> str:
    return f"{count / GIB:.1f} GiB" if count >= GIB else f"{count / 2**20:.0f} MiB"


class _Lease:
    """The file in which this process lists the caches that it uses."""

    def __init__(self, folder: Path) -> None:
        self.keys: set[str] = set()
        self.path = folder / f".in-use-{uuid.uuid4().hex[:12]}.{socket.gethostname()}.lock"
        self._file = os.open(self.path, os.O_CREAT | os.O_RDWR | os.O_APPEND, 0o664)
        Finalize(None, _unlink, (self.path,), exitpriority=-1)  # after the processes that this one started
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:  # a file system without locks: nobody else can tell, and so nobody evicts
            log.debug("%s cannot be locked: %s", self.path, error)

    def add(self, key: str) -> None:
        os.write(self._file, f"{key}\n".encode())
        self.keys.add(key)

    def listed(self) -> set[str]:
        """Its keys, those of forked processes too. Opened anew, a locked file cannot be read over SMB."""
        return set(os.pread(self._file, os.fstat(self._file).st_size, 0).decode().split())


def _unlink(lease: Path) -> None:
    with suppress(OSError):
        lease.unlink()


_leases: dict[Path, _Lease] = {}


def _in_use(folder: Path) -> set[str]:
    """Keys in all living leases; dead ones of this host are removed."""
    own = _leases.get(folder.absolute())
    kept = own.listed() if own else set()
    for lease in _leases_in(folder):
        if own and lease.name == own.path.name:
            continue
        if _host(lease) == socket.gethostname() and _is_dead(lease):
            _unlink(lease)
        else:
            kept |= _keys(lease)
    return kept


def used_elsewhere(folder: Path, key: str) -> bool:
    """Whether another host has a lease for a cache, which it may be building: our locks may not reach it."""
    here = socket.gethostname()
    return any(key in _keys(lease) for lease in _leases_in(folder) if _host(lease) != here)


def _leases_in(folder: Path) -> Iterator[Path]:
    return folder.glob(".in-use-*.lock")


def _host(lease: Path) -> str:
    return lease.name.split(".", 2)[2].removesuffix(".lock")


def _is_dead(lease: Path) -> bool:
    """Whether the lock of a lease is free, so that nobody lives who held it."""
    try:
        with lease.open("r+") as file:  # over NFS, what is opened to be read cannot be locked
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:  # held, or there is no telling: another user's, or a file system without locks
        return False
    return True


def _keys(lease: Path) -> set[str]:
    try:
        with lease.open() as file:
            return set(file.read().split())
    except FileNotFoundError:  # its process ended just now
        return set()
    except PermissionError:  # over SMB, what another process locks cannot be read: it may use any
        return {key[0] for place in lease.parent.iterdir() if (key := _PLACE.search(place.name))}


def _other_hosts(folder: Path) -> str:
    """What to do about leases of other hosts, where there are some."""
    hosts = sorted({_host(lease) for lease in _leases_in(folder)} - {socket.gethostname()})
    if not hosts:
        return ""
    more = ", …" if len(hosts) > _NAMED else ""
    return (
        f" Leases of other hosts ({', '.join(hosts[:_NAMED])}{more}) always count as in use: where a run there was "
        "killed, remove its .in-use-*.<host>.lock."
    )


@dataclass(frozen=True)
class _Cache:
    """One cache in the folder. promised: bytes that it will take and does not yet."""

    place: Path
    key: str
    bytes: int
    promised: int
    used: float

    def evict(self, instead: str) -> None:
        """Remove it, and say so."""
        day = time.strftime("%Y-%m-%d", time.localtime(self.used))
        log.warning(
            "%s (%s, last used on %s) gives way to %s.", _name(self.place), _size(self.bytes), day, instead
        )
        remove(self.place)


def remove(place: Path) -> None:
    """Remove a cache under another name, so that nobody finds half of it. Whoever maps it keeps reading it."""
    gone = place.with_name(f".{place.name}.evicted-{uuid.uuid4().hex[:8]}")
    place.rename(gone)
    shutil.rmtree(gone, ignore_errors=True)


def _caches(folder: Path, kept: set[str]) -> Iterator[_Cache]:
    """Every cache, whole or being built; what a killed process left is removed."""
    for place in folder.iterdir():
        unfinished = _UNFINISHED.fullmatch(place.name)
        if unfinished and (unfinished[2] == "evicted" or unfinished[1] not in kept):
            shutil.rmtree(place, ignore_errors=True)
        elif unfinished or _PLACE.fullmatch(place.name):
            try:
                yield _measured(place, unfinished[1] if unfinished else place.name, bool(unfinished))
            except (FileNotFoundError, NotADirectoryError):  # finished or removed just now
                continue


def _measured(place: Path, key: str, unfinished: bool) -> _Cache:
    files = [file.stat() for file in place.iterdir() if file.is_file()]
    used = time.time() if unfinished else place.stat().st_mtime
    if (place / MANIFEST).is_file():
        used = (place / MANIFEST).stat().st_mtime
    promised = sum(max(0, file.st_size - 512 * file.st_blocks) for file in files) if unfinished else 0
    return _Cache(place, key, sum(file.st_size for file in files), promised, used)


def _name(place: Path) -> str:
    try:
        facts = json.loads((place / MANIFEST).read_text())
        return f"the {facts.get('kind', 'frame cache')} of {facts.get('name', place.name)!r}"
    except (OSError, ValueError, AttributeError):
        return f"the cache {place.name}"
