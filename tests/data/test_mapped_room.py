"""A limited folder: the caches used longest ago give way, and none that a living process uses."""

import errno
import fcntl
import json
import os
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from tests.data.conftest import HEAD, VIEW, toy_embodiment
from vla_mot.data import mapped_room
from vla_mot.data.frame_cache import FrameCache
from vla_mot.data.mapped_room import NoRoomError, make_room, use
from vla_mot.data.source import Source

MIB = 2**20


def cached(folder: Path, name: str, mib: int, age: float = 0) -> str:
    """A cache of some size that was used `age` seconds ago; returns its key."""
    key = name.encode().hex().ljust(24, "0")
    (folder / key).mkdir()
    (folder / key / "frames.u8").write_bytes(bytes(mib * MIB))
    manifest = folder / key / "manifest.json"
    manifest.write_text(json.dumps({"kind": "frame cache", "name": name}))
    os.utime(manifest, (time.time() - age,) * 2)
    return key


def left(folder: Path) -> list[str]:
    return sorted(
        bytes.fromhex(path.name).decode().rstrip("\0") for path in folder.iterdir() if path.is_dir()
    )


def test_what_was_used_longest_ago_gives_way_and_is_named(tmp_path, caplog):
    for name, age in (("a", 50), ("b", 90), ("c", 10), ("d", 70)):
        cached(tmp_path, name, 2, age)
    make_room(tmp_path, 3 * MIB, 8 * MIB, "the frame cache of 'new'")
    assert left(tmp_path) == ["a", "c"]
    told = [record.message for record in caplog.records]
    assert [message.split(" (")[0] for message in told] == [
        "the frame cache of 'b'",
        "the frame cache of 'd'",
    ]
    assert all(message.endswith("gives way to the frame cache of 'new'.") for message in told)


def test_no_more_gives_way_than_needed(tmp_path):
    cached(tmp_path, "a", 2, 50)
    make_room(tmp_path, 2 * MIB, 5 * MIB, "new")
    make_room(tmp_path, 9 * MIB, None, "new")  # no limit: nothing ever gives way
    assert left(tmp_path) == ["a"]


def test_nothing_gives_way_in_vain(tmp_path):
    cached(tmp_path, "a", 2, 50)
    with pytest.raises(NoRoomError, match=r"new needs 9 MiB; of the limit of 8 MiB for .*, 0 MiB are taken"):
        make_room(tmp_path, 9 * MIB, 8 * MIB, "new")
    assert left(tmp_path) == ["a"]


def test_what_this_process_uses_stays(tmp_path):
    use(tmp_path, cached(tmp_path, "a", 2, 90))
    cached(tmp_path, "b", 2, 10)
    make_room(tmp_path, 2 * MIB, 5 * MIB, "new")
    assert left(tmp_path) == ["a"]
    with pytest.raises(NoRoomError, match="2 MiB are taken by caches in use"):
        make_room(tmp_path, 4 * MIB, 5 * MIB, "new")


def test_one_descriptor_leases_all_caches_of_a_folder(tmp_path):
    use(tmp_path, "0" * 24)
    before = len(os.listdir("/proc/self/fd"))
    for number in range(1, 200):
        use(tmp_path, f"{number:024x}")
    assert len(os.listdir("/proc/self/fd")) == before


USER = """
import sys
from pathlib import Path
from vla_mot.data.mapped_room import use
use(Path(sys.argv[1]), sys.argv[2])
print("uses", flush=True)
sys.stdin.readline()
"""


@pytest.mark.multiprocess
def test_what_another_process_uses_stays_until_it_ends(tmp_path):
    key = cached(tmp_path, "a", 2, 90)
    command = [sys.executable, "-c", USER, tmp_path, key]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout.readline() == "uses\n"
        with pytest.raises(NoRoomError):
            make_room(tmp_path, 3 * MIB, 4 * MIB, "new")
        other.kill()
        other.wait(timeout=60)
    make_room(tmp_path, 3 * MIB, 4 * MIB, "new")
    assert left(tmp_path) == []
    assert not list(tmp_path.glob(".in-use-*"))


@pytest.mark.multiprocess
def test_a_process_that_ends_takes_its_lease_along(tmp_path):
    command = [sys.executable, "-c", USER, tmp_path, cached(tmp_path, "a", 2)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout.readline() == "uses\n"
        assert len(list(tmp_path.glob(".in-use-*"))) == 1
        other.communicate("end\n", timeout=60)
    assert other.returncode == 0
    assert not list(tmp_path.glob(".in-use-*"))


FORKING = """
import os, sys
from pathlib import Path
from vla_mot.data.mapped_room import NoRoomError, make_room, use
folder = Path(sys.argv[1])
use(folder, "0" * 24)
child = os.fork()
if not child:
    use(folder, sys.argv[2])
    os._exit(0)
os.waitpid(child, 0)
try:
    make_room(folder, 3 * 2**20, 4 * 2**20, "new")
except NoRoomError:
    print("in use", flush=True)
"""


@pytest.mark.multiprocess
def test_what_a_forked_process_uses_stays(tmp_path):
    """It has its parent's lease, and lives as long as that is locked."""
    command = [sys.executable, "-c", FORKING, tmp_path, cached(tmp_path, "a", 2, 90)]
    assert subprocess.run(command, capture_output=True, text=True, timeout=60).stdout == "in use\n"


def lease(folder: Path, host: str, key: str) -> Path:
    """What a process that is gone left there; over a network, nobody can tell whether it is."""
    path = folder / f".in-use-{'0' * 12}.{host}.lock"
    path.write_text(f"{key}\n")
    return path


def test_over_nfs_the_lease_of_a_killed_process_goes(tmp_path, monkeypatch):
    """There the kernel locks only what was opened to be written."""
    flock = fcntl.flock

    def of_nfs(file, how):
        number = file if isinstance(file, int) else file.fileno()
        if fcntl.fcntl(number, fcntl.F_GETFL) & os.O_ACCMODE == os.O_RDONLY:
            raise OSError(errno.EBADF, os.strerror(errno.EBADF))
        flock(file, how)

    monkeypatch.setattr(fcntl, "flock", of_nfs)
    dead = lease(tmp_path, socket.gethostname(), cached(tmp_path, "a", 2, 90))
    make_room(tmp_path, 3 * MIB, 4 * MIB, "new")
    assert left(tmp_path) == [] and not dead.exists()


def test_over_smb_a_lease_that_cannot_be_read_keeps_everything(tmp_path, monkeypatch):
    cached(tmp_path, "a", 2, 90)
    held, plain = lease(tmp_path, socket.gethostname(), "0" * 24), Path.open

    def refused(path, *arguments, **options):
        if path == held:
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
        return plain(path, *arguments, **options)

    monkeypatch.setattr(Path, "open", refused)
    with pytest.raises(NoRoomError, match="2 MiB are taken by caches in use"):
        make_room(tmp_path, 3 * MIB, 4 * MIB, "new")
    assert left(tmp_path) == ["a"] and held.exists()


@pytest.mark.parametrize("other", ["node7", f"other.{socket.gethostname()}"])
def test_what_another_host_uses_or_builds_stays_though_its_lease_is_not_locked(tmp_path, other):
    """Locks may end at the machine: that one is free here says nothing of a process there."""
    theirs = lease(tmp_path, other, cached(tmp_path, "a", 2, 90))
    building = "b" * 24
    theirs.write_text(theirs.read_text() + building)
    work = tmp_path / f".{building}.building-12345678"
    work.mkdir()
    told = rf"2 MiB are taken by caches in use.*\({other}\).*remove its \.in-use-\*\.<host>\.lock"
    with pytest.raises(NoRoomError, match=told):
        make_room(tmp_path, 3 * MIB, 4 * MIB, "new")
    assert theirs.exists() and work.exists()


def test_a_build_of_the_same_cache_on_another_host_goes_on(source, cache, tmp_path):
    key = cache.folder.name
    theirs = lease(tmp_path, "node7", key)
    work = tmp_path / f".{key}.building-12345678"
    work.mkdir()
    assert torch.equal(
        FrameCache.open(source, VIEW, tmp_path).gather(torch.arange(60)), cache.gather(torch.arange(60))
    )
    assert theirs.exists() and work.exists()


def test_what_is_being_built_counts_in_full(tmp_path):
    key = "b" * 24
    use(tmp_path, key)
    work = tmp_path / f".{key}.building-12345678"
    work.mkdir()
    with (work / "frames.u8").open("wb") as file:
        file.truncate(3 * MIB)
    with pytest.raises(NoRoomError, match="3 MiB are taken by caches in use"):
        make_room(tmp_path, 2 * MIB, 4 * MIB, "new")
    free = shutil.disk_usage(tmp_path).free
    with pytest.raises(NoRoomError):
        make_room(tmp_path, free - MIB, None, "new")


def test_only_our_own_folders_are_touched(tmp_path):
    """A user may keep caches in a folder with other things in it."""
    dead = tmp_path / f".{'a' * 24}.building-12345678"
    for place in (dead, tmp_path / ".ssh", tmp_path / "photos", tmp_path / ".a.building-12345678"):
        place.mkdir()
        (place / "frames.u8").write_bytes(bytes(MIB))
    make_room(tmp_path, 2 * MIB, 2 * MIB, "new")
    assert sorted(path.name for path in tmp_path.iterdir() if path.suffix != ".lock") == [
        ".a.building-12345678", ".ssh", "photos",
    ]  # fmt: skip


@pytest.fixture
def elsewhere(monkeypatch):
    """What this process has leased so far is forgotten, as if another process had done it and ended."""
    monkeypatch.setattr(mapped_room, "_leases", {})


def test_a_mapped_cache_that_gives_way_stays_readable_and_comes_back(
    recording, source, cache, tmp_path, elsewhere
):
    first = FrameCache.open(source, VIEW, tmp_path)
    for lease in tmp_path.glob(".in-use-*"):
        lease.unlink()
    mapped_room._leases.clear()
    limit = 1.5 * first.shape[0] * 2 * 3 * VIEW[0] * VIEW[1] / 2**30
    one_camera = Source.open(recording.root, toy_embodiment(cameras=[HEAD]))
    FrameCache.open(one_camera, VIEW, tmp_path, limit_gib=0.75 * limit)
    assert not first.folder.exists()
    assert torch.equal(first.gather(torch.arange(60)), cache.gather(torch.arange(60)))
    again = FrameCache.open(source, VIEW, tmp_path, limit_gib=2 * limit)
    assert torch.equal(again.gather(torch.arange(60)), cache.gather(torch.arange(60)))


def test_opening_a_cache_counts_as_a_use(source, tmp_path):
    cache = FrameCache.open(source, VIEW, tmp_path)
    os.utime(cache.folder / "manifest.json", (0, 0))
    FrameCache.open(source, VIEW, tmp_path)
    assert time.time() - (cache.folder / "manifest.json").stat().st_mtime < 60


@pytest.mark.skipif(os.geteuid() == 0, reason="root writes into read-only folders")
def test_a_whole_cache_in_a_read_only_folder_opens(source, cache, tmp_path):
    folder = shutil.copytree(cache.folder.parent, tmp_path / "frames")
    folder.chmod(0o500)
    try:
        assert FrameCache.open(source, VIEW, folder).shape == cache.shape
    finally:
        folder.chmod(0o700)
