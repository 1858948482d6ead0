"""Decoding on demand: any frames in any order, and every kind of broken file an error, never another picture."""

import pickle
import shutil
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.data.conftest import GRIPPER, HEAD, LENGTHS, SIZE, toy_embodiment
from vla_mot.data.decoder import choose_decoder
from vla_mot.data.pictures import EpisodeError, _runs
from vla_mot.data.recorder import dataset_features, record_dataset
from vla_mot.data.source import Source
from vla_mot.errors import ConfigError, DatasetError

NOISE = 96  # pixels; noise fills a video file of 1 MB with about 40 frames
PARTS = (60, 50, 60)  # frames of the episodes, each in a video file of its own


@pytest.fixture(scope="session", params=["pyav", "torchcodec"])
def decoder(request) -> str:
    try:
        return choose_decoder(request.param)
    except ConfigError as error:
        pytest.skip(str(error))


@dataclass(frozen=True)
class Noise:
    """A dataset of one camera whose videos are several files, and its pictures decoded in one sweep."""

    root: Path
    pictures: dict[str, torch.Tensor]

    def video(self, episode: int) -> str:
        return f"videos/{HEAD}/chunk-000/file-{episode:03d}.mp4"


@pytest.fixture(scope="session")
def noise(tmp_path_factory) -> Noise:
    random, robot = np.random.default_rng(0), toy_embodiment(cameras=[HEAD])
    episodes = (
        [
            {
                HEAD: random.integers(0, 255, (NOISE, NOISE, 3)).astype(np.uint8),
                "observation.state": np.zeros(3, np.float32),
                "observation.gripper": np.zeros(1, np.float32),
                "action": np.zeros(3, np.float32),
                "task": "watch",
            }
            for _ in range(length)
        ]
        for length in PARTS
    )
    root = tmp_path_factory.mktemp("noise") / "noise"
    record_dataset(root, "tests/noise", 10, dataset_features(robot, NOISE, NOISE), episodes)
    pictures = {}
    for name in ("pyav", "torchcodec"):
        try:
            source = Source.open(root, robot, decoder=name)
        except ConfigError:
            continue
        pictures[name] = torch.cat([source.decode(episode, HEAD) for episode in range(len(PARTS))])
    return Noise(root, pictures)


@pytest.fixture
def noisy(noise, decoder) -> Source:
    return Source.open(noise.root, toy_embodiment(cameras=[HEAD]), decoder=decoder)


@pytest.fixture
def damaged(noise, tmp_path) -> Path:
    """A copy of the noise that a test may damage."""
    return shutil.copytree(noise.root, tmp_path / "damaged")


@settings(max_examples=8, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(frames=st.lists(st.integers(0, sum(PARTS) - 1), min_size=1, max_size=24))
def test_any_frames_in_any_order_equal_the_sweep(noise, noisy, frames):
    assert torch.equal(
        noisy.decode_frames(torch.tensor(frames), HEAD), noise.pictures[noisy.pictures.decoder][frames]
    )


def test_what_comes_at_once_is_bounded_and_stays_in_its_episode(noise, noisy):
    frames = torch.tensor([0, 1, 2, 30, 58, 59, 60, 61, 109, 110])
    runs = list(noisy.pictures.decode(frames, HEAD))
    assert [frames[run].tolist() for run, _ in runs] == [[0, 1, 2], [30], [58, 59], [60, 61], [109], [110]]
    assert all(len(pictures) == run.stop - run.start for run, pictures in runs)
    assert list(_runs(list(range(300)), [0] * 300)) == [slice(0, 128), slice(128, 256), slice(256, 300)]


@pytest.mark.parametrize("frame", [-1, sum(PARTS)])
def test_a_frame_that_is_not_there_is_refused(noisy, frame):
    with pytest.raises(IndexError, match="are not all among the 170"):
        noisy.decode_frames(torch.tensor([3, frame]), HEAD)


def test_a_source_pickles_and_goes_on_elsewhere(noise, noisy):
    again = pickle.loads(pickle.dumps(noisy))
    assert torch.equal(
        again.decode_frames(torch.tensor([7]), HEAD), noisy.decode_frames(torch.tensor([7]), HEAD)
    )


def halve(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def cut_last_byte(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def empty(path: Path) -> None:
    path.write_bytes(b"")


def zero(path: Path) -> None:
    path.write_bytes(bytes(path.stat().st_size))


def overwrite_the_middle(path: Path) -> None:
    content = path.read_bytes()
    at = len(content) // 2
    path.write_bytes(content[:at] + bytes(len(content) // 4) + content[at + len(content) // 4 :])


def shorten(path: Path) -> None:
    shutil.copy(path.with_name("file-001.mp4"), path)


DAMAGE = {
    halve: "cut short",
    cut_last_byte: "cut short",
    empty: "the file is empty",
    zero: "",
    overwrite_the_middle: "",
    shorten: "the file has 50 pictures, its episodes need 57",
    Path.unlink: "No such file",
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_broken_video_is_an_error_that_names_it(damaged, noise, decoder, damage):
    source = Source.open(damaged, toy_embodiment(cameras=[HEAD]), decoder=decoder)
    source.decode_frames(
        torch.tensor([0, 119, 120]), HEAD
    )  # what a decoder keeps open must not hide the damage
    damage(damaged / noise.video(2))
    with pytest.raises(EpisodeError) as caught:
        source.decode_frames(torch.arange(100, sum(PARTS)), HEAD)
    message = f"camera '{HEAD}' of episode 2 in {damaged} cannot be decoded from {noise.video(2)}: "
    assert str(caught.value).startswith(message + (DAMAGE[damage] if "has" in DAMAGE[damage] else ""))
    assert DAMAGE[damage] in str(caught.value)
    assert (caught.value.episode, caught.value.camera) == (2, HEAD)
    assert torch.equal(source.decode_frames(torch.tensor([109]), HEAD), noise.pictures[decoder][[109]])


def test_an_error_crosses_processes_with_what_was_noted():
    error = EpisodeError("episode 2 is lost", 2, HEAD)
    error.add_note("met in worker 3")
    again = pickle.loads(pickle.dumps(error))
    assert (str(again), again.episode, again.camera) == ("episode 2 is lost", 2, HEAD)
    assert again.__notes__ == ["met in worker 3"]


def test_another_video_is_never_read_beyond_its_end(damaged, noise, decoder, monkeypatch):
    """Whatever the index of the file says: a picture that is not at its time is no picture."""
    monkeypatch.setattr("vla_mot.data.pictures._SAME_FILE", 0)
    shutil.copy(damaged / noise.video(1), damaged / noise.video(2))
    source = Source.open(damaged, toy_embodiment(cameras=[HEAD]), decoder=decoder)
    with pytest.raises(EpisodeError, match="of episode 2"):
        source.decode_frames(torch.tensor([sum(PARTS) - 1]), HEAD)


def test_a_video_that_was_replaced_is_read_anew(damaged, noise, decoder):
    source = Source.open(damaged, toy_embodiment(cameras=[HEAD]), decoder=decoder)
    source.decode_frames(torch.tensor([115]), HEAD)
    shutil.copy(damaged / noise.video(0), damaged / noise.video(2))  # in place: the same file, other bytes
    assert torch.equal(source.decode_frames(torch.tensor([115]), HEAD), noise.pictures[decoder][[5]])


def test_a_missing_video_costs_its_episodes_only(damaged, noise, decoder):
    (damaged / noise.video(1)).unlink()
    robot = toy_embodiment(cameras=[HEAD])
    with pytest.raises(DatasetError, match=f"lacks 1 of its files: {noise.video(1)}"):
        Source.open(damaged, robot)
    source = Source.open(damaged, robot, missing="report", decoder=decoder)
    assert source.missing == (noise.video(1),)
    assert torch.equal(source.decode(2, HEAD), noise.pictures[decoder][110:])
    with pytest.raises(EpisodeError, match=f"of episode 1 in .*{noise.video(1)}"):
        source.decode(1, HEAD)


def test_the_hash_tells_whether_a_file_is_missing(damaged, noise):
    robot = toy_embodiment(cameras=[HEAD])
    whole = Source.open(damaged, robot, missing="report").content_hash
    (damaged / noise.video(1)).rename(damaged / "elsewhere")
    lacking = Source.open(damaged, robot, missing="report").content_hash
    assert lacking != whole == Source.open(noise.root, robot).content_hash


def test_a_missing_table_is_refused_even_so(recording, tmp_path):
    root = shutil.copytree(recording.root, tmp_path / "copied")
    table = root / "data/chunk-000/file-000.parquet"
    shutil.copy(table, table.with_name("file-001.parquet"))
    table.unlink()
    with pytest.raises(DatasetError, match=r"lacks 1 of its files: data/chunk-000/file-000\.parquet"):
        Source.open(root, toy_embodiment(), missing="report")


@pytest.fixture(scope="session")
def stills(recording, tmp_path_factory) -> Path:
    """The recording with its pictures stored as images in the table."""
    features = dataset_features(toy_embodiment(), SIZE, SIZE)
    features |= {key: {**features[key], "dtype": "image"} for key in (HEAD, GRIPPER)}
    root = tmp_path_factory.mktemp("stills") / "stills"
    record_dataset(root, "tests/stills", 10, features, recording.episodes)
    return root


def test_images_come_in_any_order(stills, recording):
    frames = [40, 3, 59, 3, 20, 19]
    found = Source.open(stills, toy_embodiment()).decode_frames(torch.tensor(frames), GRIPPER)
    np.testing.assert_array_equal(found.permute(0, 2, 3, 1), recording.column(GRIPPER)[frames])


@pytest.mark.parametrize("damage", [halve, empty, zero, Path.unlink])
def test_a_table_of_images_that_breaks_later_is_named(stills, tmp_path, damage):
    root = shutil.copytree(stills, tmp_path / "copied")
    source = Source.open(root, toy_embodiment())
    table = "data/chunk-000/file-000.parquet"
    damage(root / table)
    with pytest.raises(EpisodeError, match=rf"camera '{HEAD}' of episode 1 in .*{table}"):
        source.decode_frames(torch.tensor([LENGTHS[0]]), HEAD)


@pytest.mark.parametrize("damage", [halve, empty, zero])
@pytest.mark.parametrize(
    "file",
    ["data/chunk-000/file-000.parquet", "meta/episodes/chunk-000/file-000.parquet", "meta/tasks.parquet"],
)
def test_a_broken_table_is_named_when_opened(recording, tmp_path, damage, file):
    root = shutil.copytree(recording.root, tmp_path / "copied")
    damage(root / file)
    with pytest.raises(DatasetError, match=f"LeRobot cannot open dataset .*copied: {file} is not readable"):
        Source.open(root, toy_embodiment())
