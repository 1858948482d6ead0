"""Frames from a cache and from video are the same; what does not fit is decoded; what is broken is named."""

import errno
import os
import shutil
from collections import namedtuple
from pathlib import Path

import pytest
import torch

from tests.data.conftest import GRIPPER, HEAD, LENGTHS, VIEW, toy_embodiment
from vla_mot.data import mapped_array
from vla_mot.data.decoder import choose_decoder
from vla_mot.data.frame_cache import FrameCache
from vla_mot.data.frames import FramesConfig, VideoFrames, open_frames
from vla_mot.data.pictures import EpisodeError
from vla_mot.data.source import Source
from vla_mot.errors import ConfigError

NEED_GIB = sum(LENGTHS) * 2 * 3 * VIEW[0] * VIEW[1] / 2**30  # of the recording's cache


@pytest.mark.parametrize("decoder", ["pyav", "torchcodec"])
def test_decoding_on_demand_equals_the_cache(recording, tmp_path, decoder):
    try:
        choose_decoder(decoder)
    except ConfigError as error:
        pytest.skip(str(error))
    source = Source.open(recording.root, recording.embodiment)
    cached, decoded = (
        open_frames(source, VIEW, FramesConfig(store, tmp_path, decoder=decoder))
        for store in ("cache", "video")
    )
    assert isinstance(cached, FrameCache)
    assert isinstance(decoded, VideoFrames)
    assert cached.shape == decoded.shape == (60, 2, 3, *VIEW)
    drawn = torch.randint(60, (5, 3), generator=torch.Generator().manual_seed(0))
    for frames in (torch.arange(60), drawn, torch.tensor(17), torch.empty(0, 3, dtype=torch.int64)):
        assert torch.equal(decoded.gather(frames), cached.gather(frames))
        assert decoded.gather(frames).shape == (*frames.shape, 2, 3, *VIEW)


@pytest.mark.parametrize("frame", [-1, 60])
def test_a_frame_that_is_not_there_is_refused_by_both(source, cache, frame):
    for frames in (cache, VideoFrames(source, VIEW)):
        with pytest.raises(IndexError):
            frames.gather(torch.tensor([3, frame]))


def test_an_unknown_decoder_is_refused(source):
    with pytest.raises(ConfigError, match="unknown decoder"):
        open_frames(source, VIEW, FramesConfig("video", decoder="dvd"))


@pytest.mark.parametrize("limit", [0, -1.0, float("nan")])
def test_a_limit_without_room_is_refused(limit):
    with pytest.raises(ConfigError, match="must be above 0 GiB"):
        FramesConfig(limit_gib=limit)


def test_what_exceeds_the_limit_is_decoded_and_said_once(source, cache, tmp_path, caplog):
    config = FramesConfig(folder=tmp_path, limit_gib=NEED_GIB * 0.9)
    first, second = (open_frames(source, VIEW, config) for _ in range(2))
    assert isinstance(first, VideoFrames)
    assert isinstance(second, VideoFrames)
    assert torch.equal(first.gather(torch.tensor([5])), cache.gather(torch.tensor([5])))
    (said,) = [record.message for record in caplog.records]
    assert said.startswith(
        "dataset 'toy' is decoded from video, which is slower: the frame cache of 'toy' needs 0 MiB"
    )
    assert f"of the limit of 0 MiB for {tmp_path}, 0 MiB are taken" in said


def test_what_exceeds_the_disk_is_decoded(source, tmp_path, monkeypatch, caplog):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(2**30, 2**30, 1000))
    assert isinstance(open_frames(source, VIEW, FramesConfig(folder=tmp_path)), VideoFrames)
    assert f"in {tmp_path}, where 0 MiB are free" in caplog.text


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT])
def test_a_disk_that_fills_up_meanwhile_leaves_nothing(source, tmp_path, monkeypatch, code):
    def full(file):
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(mapped_array.os, "fsync", full)
    assert isinstance(open_frames(source, VIEW, FramesConfig(folder=tmp_path)), VideoFrames)
    assert not [path for path in tmp_path.iterdir() if path.suffix != ".lock"]


@pytest.fixture
def broken(recording, tmp_path) -> Path:
    """A copy of the recording whose second camera cannot be decoded."""
    root = shutil.copytree(recording.root, tmp_path / "broken")
    next((root / "videos" / GRIPPER).rglob("*.mp4")).write_bytes(b"")
    return root


def lose_an_episode(source: Source, monkeypatch, episode: int) -> None:
    decode = Source.decode_runs

    def losing(self, number, camera):
        if (number, camera) == (episode, GRIPPER):
            raise EpisodeError(f"episode {number} is lost", number, camera)
        return decode(self, number, camera)

    monkeypatch.setattr(Source, "decode_runs", losing)


def test_a_cache_keeps_the_episodes_that_can_be_read(recording, cache, tmp_path, monkeypatch):
    source = Source.open(recording.root, recording.embodiment, missing="report")
    with monkeypatch.context() as patch:
        lose_an_episode(source, patch, 1)
        FrameCache.open(source, VIEW, tmp_path)
    holed = FrameCache.open(source, VIEW, tmp_path, progress=lambda done, total: pytest.fail("built again"))
    real = torch.cat([torch.arange(20), torch.arange(33, 60)])
    assert torch.equal(holed.gather(real), cache.gather(real))
    for frame in (20, 32):
        with pytest.raises(EpisodeError, match="episode 1 is lost") as caught:
            holed.gather(torch.tensor([[0, frame]]))
        assert (caught.value.episode, caught.value.camera) == (1, GRIPPER)


def test_who_tolerates_no_hole_has_the_cache_built_again(recording, cache, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        tolerant = Source.open(recording.root, recording.embodiment, missing="report")
        lose_an_episode(tolerant, patch, 3)
        FrameCache.open(tolerant, VIEW, tmp_path)
        with pytest.raises(EpisodeError, match="episode 3 is lost"):
            FrameCache.open(Source.open(recording.root, recording.embodiment), VIEW, tmp_path)
    again = FrameCache.open(Source.open(recording.root, recording.embodiment), VIEW, tmp_path)
    assert torch.equal(again.gather(torch.arange(60)), cache.gather(torch.arange(60)))


@pytest.mark.parametrize("store", ["cache", "video"])
def test_a_video_that_cannot_be_read_is_named(broken, tmp_path, store):
    source = Source.open(broken, toy_embodiment(), missing="report")
    frames = open_frames(source, VIEW, FramesConfig(store, tmp_path / "frames"))
    with pytest.raises(EpisodeError, match=f"camera '{GRIPPER}' of episode 2 in {broken}.*the file is empty"):
        frames.gather(torch.tensor([33]))
    head = Source.open(broken, toy_embodiment(cameras=[HEAD]), missing="report")
    assert open_frames(head, VIEW, FramesConfig(store, tmp_path / "frames")).gather(torch.tensor([33])).any()
