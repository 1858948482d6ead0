import errno
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.data.conftest import square
from tests.data.v21 import CAMERAS, LENGTHS, Legacy, write_legacy, write_video
from tests.full_disk import full_disk
from vla_mot.data.legacy import convert_legacy
from vla_mot.data.source import Source
from vla_mot.errors import DatasetError
from vla_mot.robots.generic import infer_embodiment


@pytest.fixture(scope="module")
def legacy(tmp_path_factory) -> Legacy:
    return write_legacy(tmp_path_factory.mktemp("legacy") / "old")


@pytest.fixture(scope="module")
def converted(legacy, tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("converted") / "new"
    convert_legacy(legacy.root, root)
    return root


@pytest.fixture
def copy(legacy, tmp_path) -> Path:
    """A v2.1 dataset that may be damaged."""
    return Path(shutil.copytree(legacy.root, tmp_path / "copy"))


def files(root: Path) -> dict[str, bytes]:
    return {str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*") if path.is_file()}


def open_generic(root: Path) -> Source:
    return Source.open(root, infer_embodiment(json.loads((root / "meta/info.json").read_text())))


def test_states_actions_and_tasks_are_what_was_written(legacy, converted):
    source = open_generic(converted)
    assert np.array_equal(source.state.numpy(), legacy.state)
    assert np.array_equal(source.action.numpy(), legacy.action)
    assert [source.task(frame) for frame in range(source.num_frames)] == legacy.tasks
    assert (source.bounds[:, 1] - source.bounds[:, 0]).tolist() == list(LENGTHS)
    assert (source.fps, source.embodiment.name) == (10, "so100")


def test_pictures_are_what_was_written(converted):
    source = open_generic(converted)
    for episode, length in enumerate(LENGTHS):
        for view, camera in enumerate(CAMERAS):
            drawn = np.stack([square(time + 5 * view, episode) for time in range(length)])
            shown = source.decode(episode, camera).permute(0, 2, 3, 1)
            error = (shown.float() - torch.from_numpy(drawn).float()).abs().mean(dim=(1, 2, 3))
            assert error.max() < 4
            neighbour = (shown[1:].float() - torch.from_numpy(drawn)[:-1].float()).abs().mean(dim=(1, 2, 3))
            assert (neighbour > 1.2 * error[1:]).all(), "a picture resembles its neighbour more"


def test_the_input_stays_as_it_is_and_nothing_lies_around(legacy, tmp_path):
    before = files(legacy.root)
    made = convert_legacy(legacy.root, tmp_path / "deep" / "new")
    assert (made.episodes, made.frames, made.cameras) == (3, sum(LENGTHS), CAMERAS)
    assert files(legacy.root) == before
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["new"]


def test_a_rate_of_no_whole_frames_is_kept(tmp_path):
    old = write_legacy(tmp_path / "old", fps=12.5)
    assert convert_legacy(old.root, tmp_path / "new").fps == 12.5
    assert open_generic(tmp_path / "new").fps == 12.5


def change_info(root: Path, **changes) -> None:
    path = root / "meta/info.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def drop_stats(root: Path) -> None:
    path = root / "meta/episodes_stats.jsonl"
    path.write_text(path.read_text().splitlines()[0] + "\n")


def swap_video(root: Path) -> None:
    """Another picture at the right place: only a comparison by eye, or by pixels, would notice."""
    path = root / "videos/chunk-000" / CAMERAS[0] / "episode_000000.mp4"
    path.unlink()
    write_video(path, [square(time, 3) for time in range(LENGTHS[0] + 4)], 10)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (
            lambda root: change_info(root, codebase_version="v3.0"),
            "has LeRobot format v3.0 already; it needs no",
        ),
        (
            lambda root: change_info(root, codebase_version="v2.0"),
            "has LeRobot format v2.0; lerobot converts v2.1",
        ),
        (lambda root: change_info(root, features=3), "info.json is not readable.*features must be a mapping"),
        (lambda root: change_info(root, total_episodes="many"), "info.json is not readable"),
        (lambda root: (root / "meta/info.json").write_text("{"), "info.json is not readable"),
        (lambda root: (root / "meta/info.json").unlink(), "has no meta/info.json"),
        (
            lambda root: (root / "meta/tasks.jsonl").unlink(),
            "no whole v2.1 dataset: meta/tasks.jsonl is missing",
        ),
        (lambda root: next(root.glob("data/*/*1.parquet")).unlink(), "data: 2 files for 3 episodes"),
        (lambda root: next(root.glob("videos/*/*top/*2.mp4")).unlink(), "top: 2 files for 3 episodes"),
        (
            lambda root: (root / "meta/episodes.jsonl").write_text("{"),
            "converter failed on .*copy: .*is unchanged",
        ),
        (drop_stats, "converter failed on .*copy: "),
        (
            lambda root: next(root.glob("videos/*/*top/*1.mp4")).write_bytes(b"x" * 999),
            "converter failed on .*copy",
        ),
        (
            lambda root: change_info(root, total_frames=30),
            "converter made of it differ: .*29 frames.*says 30",
        ),
    ],
)
def test_what_cannot_be_converted_is_said_and_leaves_nothing(copy, damage, message):
    damage(copy)
    before = files(copy)
    with pytest.raises(DatasetError, match=message):
        convert_legacy(copy, copy.parent / "new")
    assert files(copy) == before
    assert [path.name for path in copy.parent.iterdir()] == ["copy"]


def test_pictures_that_moved_are_noticed(legacy, converted, tmp_path, monkeypatch):
    """The old dataset's pictures are changed behind the converter's back."""
    copy = Path(shutil.copytree(legacy.root, tmp_path / "copy"))

    def convert_and_swap(work: Path) -> None:
        shutil.rmtree(work)
        shutil.copytree(converted, work)

    swap_video(copy)
    monkeypatch.setattr("vla_mot.data.legacy._call_converter", convert_and_swap)
    with pytest.raises(
        DatasetError, match=r"other pictures of observation.images.top in episode 0\. Nothing"
    ):
        convert_legacy(copy, tmp_path / "new")


def test_a_full_disk_is_said_as_such(legacy, tmp_path, monkeypatch):
    with full_disk(2_000), pytest.raises(OSError) as caught:
        convert_legacy(legacy.root, tmp_path / "new")
    assert caught.value.errno == errno.EFBIG
    free = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda place: free._replace(free=1000))
    with pytest.raises(OSError, match=r"needs about 0\.0 GB, 0\.0 GB are free"):
        convert_legacy(legacy.root, tmp_path / "new")
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_is_not_there(tmp_path):
    (tmp_path / "olds").mkdir()
    with pytest.raises(DatasetError, match=r"old does not exist\. Did you mean 'olds'"):
        convert_legacy(tmp_path / "old", tmp_path / "new")
