import itertools

import numpy as np
import pytest
from lerobot.datasets.lerobot_dataset import LeRobotDataset

from tests.data.conftest import GRIPPER, HEAD, LENGTHS, SIZE, TASKS, toy_embodiment, toy_episodes
from tests.full_disk import full_disk
from vla_mot.data.recorder import _check_videos, _disk_errors, dataset_features, record_dataset
from vla_mot.data.source import Source
from vla_mot.errors import DatasetError

FEATURES = dataset_features(toy_embodiment(), SIZE, SIZE)


def record(root, episodes):
    return record_dataset(root, "tests/toy", 10, FEATURES, episodes)


def psnr(truth: np.ndarray, found: np.ndarray) -> float:
    return float(10 * np.log10(255**2 / np.mean((truth.astype(float) - found.astype(float)) ** 2)))


def test_lerobot_reads_back_what_was_written(recording):
    dataset = LeRobotDataset("tests/toy", root=recording.root, video_backend="pyav", return_uint8=True)
    assert (len(dataset), dataset.num_episodes, dataset.fps) == (sum(LENGTHS), len(LENGTHS), 10)
    items = [dataset[i] for i in range(len(dataset))]
    for key in ("observation.state", "action"):
        np.testing.assert_array_equal(np.stack([item[key] for item in items]), recording.column(key))
    assert [item["task"] for item in items] == [frame["task"] for e in recording.episodes for frame in e]
    assert {item["task"] for item in items} == set(TASKS)
    for camera in (HEAD, GRIPPER):
        found = np.stack([item[camera].permute(1, 2, 0) for item in items])
        assert psnr(recording.column(camera), found) > 45
        # Every single picture, so that none is another moment's.
        assert min(map(psnr, recording.column(camera), found)) > 40


def test_an_existing_folder_is_left_alone(tmp_path):
    (tmp_path / "note.txt").write_text("mine")
    with pytest.raises(DatasetError, match="exists already"):
        record(tmp_path, toy_episodes())
    assert [path.name for path in tmp_path.iterdir()] == ["note.txt"]


def interrupted_episodes():
    episodes = toy_episodes()
    yield next(episodes)
    yield itertools.chain(next(episodes)[:5], interrupt())


def interrupt():
    raise KeyboardInterrupt
    yield


def test_an_interrupted_recording_leaves_nothing(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        record(tmp_path / "toy", interrupted_episodes())
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("episodes", "message"), [([], "no episode to record"), ([[]], "episode 0 has no frames")]
)
def test_nothing_to_record_is_an_error(tmp_path, episodes, message):
    with pytest.raises(DatasetError, match=message):
        record(tmp_path / "toy", episodes)
    assert list(tmp_path.iterdir()) == []


def test_recording_says_nothing_of_its_own(tmp_path, capfd):
    record(tmp_path / "toy", itertools.islice(toy_episodes(), 2))
    assert capfd.readouterr() == ("", "")


def test_a_full_disk_is_said_and_leaves_nothing(tmp_path):
    with full_disk(2000), pytest.raises(OSError, match="Errno"):
        record(tmp_path / "toy", toy_episodes())
    assert list(tmp_path.iterdir()) == []


def test_what_the_disk_says_to_the_encoder_is_the_disks():
    with pytest.raises(OSError, match=r"nothing was kept of the recording.*No space left"), _disk_errors():
        raise RuntimeError("Encoder thread for head failed: [Errno 28] No space left on device")
    with pytest.raises(RuntimeError, match="else"), _disk_errors():
        raise RuntimeError("something else")


def test_lost_frames_are_noticed(recording):
    _check_videos(recording.root, [HEAD, GRIPPER], sum(LENGTHS))
    with pytest.raises(DatasetError, match=rf"hold {sum(LENGTHS)} of {sum(LENGTHS) + 1} frames"):
        _check_videos(recording.root, [HEAD], sum(LENGTHS) + 1)


def test_pictures_and_instructions_alone_make_a_dataset(tmp_path, recording):
    embodiment = toy_embodiment(state=[], action=[], cameras=[HEAD])
    features = dataset_features(embodiment, SIZE, SIZE)
    episodes = [[{HEAD: frame[HEAD], "task": frame["task"]} for frame in e] for e in recording.episodes]
    assert record_dataset(tmp_path / "video", "tests/video", 10, features, episodes) == sum(LENGTHS)
    dataset = LeRobotDataset("tests/video", root=tmp_path / "video", video_backend="pyav", return_uint8=True)
    assert not {"action", "observation.state"} & dataset.features.keys()
    assert [item["task"] for item in dataset] == [frame["task"] for e in episodes for frame in e]
    source = Source.open(tmp_path / "video", embodiment)
    assert (source.num_episodes, source.num_frames) == (len(LENGTHS), sum(LENGTHS))
    assert (source.state.shape, source.action.shape) == ((sum(LENGTHS), 0), (sum(LENGTHS), 0))
    assert not source.has_actions
    whole = Source.open(recording.root, recording.embodiment)
    assert source.decode(1, HEAD).equal(whole.decode(1, HEAD))
