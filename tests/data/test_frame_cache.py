import json
import pickle
import shutil
import subprocess
import sys
from collections import namedtuple

import pytest
import torch

from tests.data.conftest import GRIPPER, HEAD, LENGTHS, VIEW, toy_embodiment
from vla_mot.data.frame_cache import FrameCache, default_folder
from vla_mot.data.source import Source
from vla_mot.errors import DatasetError
from vla_mot.robots.images import resize_with_pad


@pytest.fixture
def built(cache, tmp_path):
    """A private copy of the cache's folder, to be damaged."""
    shutil.copytree(cache.folder.parent, tmp_path / "frames")
    return tmp_path / "frames"


def everything(cache: FrameCache) -> torch.Tensor:
    return cache.gather(torch.arange(len(cache)))


def names(folder) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if path.suffix != ".lock")


def test_frames_equal_the_decoded_pictures_resized(source, cache):
    views = [
        torch.cat(
            [resize_with_pad(source.decode(episode, key), *VIEW) for episode in range(source.num_episodes)]
        )
        for key in (HEAD, GRIPPER)
    ]
    assert torch.equal(everything(cache), torch.stack(views, dim=1))
    assert cache.gather(torch.tensor([[3, 1], [0, 3]])).shape == (2, 2, 2, 3, *VIEW)


def test_a_second_opening_decodes_nothing(source, cache):
    def progress(done, total):
        raise AssertionError("built again")

    again = FrameCache.open(source, VIEW, cache.folder.parent, progress)
    assert again.folder == cache.folder


def test_progress_counts_frames_and_nothing_shows_before_the_end(source, tmp_path):
    seen = []

    def progress(done, total):
        assert all(name.startswith(".") for name in names(tmp_path))
        seen.append((done, total))

    FrameCache.open(source, (8, 8), tmp_path, progress)
    assert seen == [(20, 60), (33, 60), (53, 60), (60, 60)]


def test_another_size_or_camera_is_another_cache(source, cache, recording, tmp_path):
    one_camera = Source.open(recording.root, toy_embodiment(cameras=[HEAD]))
    opened = [
        FrameCache.open(s, size, tmp_path)
        for s, size in ((source, (8, 8)), (source, (8, 9)), (one_camera, (8, 8)))
    ]
    assert len({c.folder for c in opened}) == 3


def truncate(folder):
    with (folder / "frames.u8").open("r+b") as file:
        file.truncate(1000)


def corrupt(folder):
    with (folder / "frames.u8").open("r+b") as file:
        file.seek(5000)
        file.write(b"damage")


def tear_manifest(folder):
    (folder / "manifest.json").write_text("{")


def relabel(folder):
    manifest = json.loads((folder / "manifest.json").read_text())
    (folder / "manifest.json").write_text(json.dumps(manifest | {"dataset": "another"}))


@pytest.mark.parametrize("damage", [truncate, corrupt, tear_manifest, relabel])
def test_a_damaged_cache_is_built_again(source, cache, built, damage, caplog):
    damage(built / cache.folder.name)
    again = FrameCache.open(source, VIEW, built)
    assert torch.equal(everything(again), everything(cache))
    assert names(built) == [cache.folder.name]
    assert "is damaged and is built again" in caplog.text


NEED_GIB = sum(LENGTHS) * 2 * 3 * VIEW[0] * VIEW[1] / 2**30


def test_a_damaged_cache_needs_no_room_beside_the_new_one(source, cache, built):
    truncate(built / cache.folder.name)
    again = FrameCache.open(source, VIEW, built, limit_gib=NEED_GIB)
    assert torch.equal(everything(again), everything(cache))


def test_an_interrupted_build_leaves_nothing(source, tmp_path):
    def progress(done, total):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        FrameCache.open(source, VIEW, tmp_path, progress)
    assert names(tmp_path) == []


def test_what_a_killed_build_left_is_removed(source, cache, tmp_path):
    dead = tmp_path / f".{cache.folder.name}.building-12345678"
    dead.mkdir()
    (dead / "frames.u8").touch()
    FrameCache.open(source, VIEW, tmp_path)
    assert names(tmp_path) == [cache.folder.name]


def test_a_full_disk_is_said_before_anything_is_written(source, tmp_path, monkeypatch):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(2**30, 2**30, 1000))
    with pytest.raises(DatasetError, match=r"needs 0 MiB in .* where 0 MiB are free"):
        FrameCache.open(source, VIEW, tmp_path)
    assert names(tmp_path) == []


def test_a_pickled_cache_is_its_path(cache):
    data = pickle.dumps(cache)
    assert len(data) < 1000
    assert torch.equal(everything(pickle.loads(data)), everything(cache))


def test_the_default_folder_is_the_users_cache(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert default_folder() == tmp_path / "vla_mot" / "frames"


BUILDER = """
import json, sys, time
from pathlib import Path
import torch
from vla_mot.data.frame_cache import FrameCache
from vla_mot.data.source import Source
from vla_mot.robots.embodiment import Embodiment

root, folder, spec = Path(sys.argv[1]), Path(sys.argv[2]), json.loads(sys.argv[3])
source = Source.open(root, Embodiment.from_dict(spec))
print("ready", flush=True)
sys.stdin.readline()  # both are ready: go
built = []
cache = FrameCache.open(source, (32, 40), folder, lambda done, total: (built.append(done), time.sleep(0.1)))
print(len(built), int(cache.gather(torch.arange(len(cache))).long().sum()), flush=True)
"""


@pytest.mark.multiprocess
def test_two_processes_at_once_build_one_cache(recording, cache, tmp_path):
    command = [
        sys.executable,
        "-c",
        BUILDER,
        recording.root,
        tmp_path,
        json.dumps(recording.embodiment.to_dict()),
    ]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    builders = [subprocess.Popen(command, **pipes) for _ in range(2)]
    assert [builder.stdout.readline() for builder in builders] == ["ready\n"] * 2
    for builder in builders:
        builder.stdin.write("go\n")
        builder.stdin.flush()
    results = [builder.communicate(timeout=120)[0].split() for builder in builders]
    assert [builder.returncode for builder in builders] == [0, 0]
    assert sorted(episodes for episodes, _ in results) == ["0", "4"]  # one built, one waited
    assert {int(total) for _, total in results} == {int(everything(cache).long().sum())}
    assert names(tmp_path) == [cache.folder.name]
